"""Measurement of the CPU cost model on this machine."""
