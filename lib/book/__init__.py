"""What the plumbing of any study needs; no model."""
