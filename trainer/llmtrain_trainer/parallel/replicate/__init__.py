"""Gradient synchronization between replica groups."""
