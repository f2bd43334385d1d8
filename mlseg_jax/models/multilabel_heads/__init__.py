"""Which labels are in the picture: a score for each of the C classes."""
