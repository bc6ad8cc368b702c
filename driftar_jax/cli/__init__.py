"""What the programs share: how they start and end, and what their flags have in common."""
