"""Bytes that each parallel group sends, and the speed of the links it uses."""
