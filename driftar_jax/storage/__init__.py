"""What is on disk: checkpoints, and paths and JSON files as users and others write them."""
