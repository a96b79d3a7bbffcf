"""Checks of a job that need more than one field, and model presets."""
