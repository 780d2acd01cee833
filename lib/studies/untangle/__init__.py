"""The study of two tasks in a toy transformer."""
