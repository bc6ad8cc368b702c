"""The autoregressive backbones; each returns features and entropy from one forward."""
