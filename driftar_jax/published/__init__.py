"""Drift-AR exactly as its authors' program has it: for their checkpoints, and to compare with."""
