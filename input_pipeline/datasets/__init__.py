"""One module for each data set or format; `open` finds the one that is asked for."""
