"""Transcoders and deltas: their files and their training."""
