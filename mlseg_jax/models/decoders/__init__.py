"""Feature maps and class queries to scores: `embed` and `classify`."""
