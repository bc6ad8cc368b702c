"""From a checkpoint and a request to images: `generator.py` first."""
