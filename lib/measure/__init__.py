"""What a replaced model does, and which features do it."""
