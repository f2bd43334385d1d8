"""Feature maps to finer ones and mask features, on which decoders of regions stand."""
