"""Mergeable states: empty, update, merge, compute."""
