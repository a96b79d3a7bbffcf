"""Saving and resuming training state."""
