"""Prometheus metrics of a training pod."""
