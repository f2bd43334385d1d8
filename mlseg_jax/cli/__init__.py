"""Flags to calls: the program and its commands."""
