"""Measuring: quality, premise and speed, judged on what the sampler really makes."""
