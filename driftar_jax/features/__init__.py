"""Frozen networks to look through: the classifier, Inception, the masked autoencoder."""
