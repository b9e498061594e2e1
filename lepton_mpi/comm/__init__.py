"""Ranks: the process grid, exact collectives, point-to-point, memory shared inside a node."""
