"""The hosts' own many-step heads."""
