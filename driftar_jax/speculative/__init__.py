"""Speculative decoding: the draft head that predicts the next encoding."""
