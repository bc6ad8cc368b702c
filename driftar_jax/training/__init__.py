"""Training: one loop, several tasks."""
