"""What the book's work costs beside others': `python -m lib.bench`."""
