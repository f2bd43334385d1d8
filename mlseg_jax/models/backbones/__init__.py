"""Pixels to feature maps."""
