"""Compile for machines one does not have: memory, FLOPs, time."""
