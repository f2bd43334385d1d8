"""Published data sets turned once into files that are read fast."""
