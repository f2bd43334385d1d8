"""Losses of regions: queries are matched with segments, and compared with those."""
