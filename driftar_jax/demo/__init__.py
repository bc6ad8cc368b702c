"""A page on this machine alone: both heads side by side, growing as they were measured."""
