"""Settings that fit the data, the machine and the minutes there are."""
