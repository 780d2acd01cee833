"""What a profile needs, before it is started: `python -m lib.plan`."""
