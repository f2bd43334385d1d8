"""The loop, the only one, and what it needs."""
