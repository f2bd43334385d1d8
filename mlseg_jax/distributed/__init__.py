"""Devices and processes: the mesh, how state is split, who waits for whom."""
