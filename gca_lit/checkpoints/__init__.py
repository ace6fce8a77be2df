"""Checkpoints and weights as files: written whole, checked, published, started from."""
