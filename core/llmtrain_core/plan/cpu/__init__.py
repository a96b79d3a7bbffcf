"""CPU time of a training step on nodes without GPUs."""
