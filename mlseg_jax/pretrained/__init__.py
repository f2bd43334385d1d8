"""Weights in and out, one strict table for each architecture."""
