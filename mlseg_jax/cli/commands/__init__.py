"""A module for each command of the program; its ``run`` takes flags, prints lines."""
