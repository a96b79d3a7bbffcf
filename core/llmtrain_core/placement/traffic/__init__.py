"""Bytes that the groups of a job send, and between which nodes."""
