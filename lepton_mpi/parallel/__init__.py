"""Layers and steps spread over the grid: shards, stages, gradient exchange, sharded update."""
