"""Texts and what is right about them; no torch."""
