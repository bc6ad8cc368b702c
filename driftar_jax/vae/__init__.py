"""Autoencoders between images and latent tokens."""
