"""Nodes whose pod statuses come from a script."""
