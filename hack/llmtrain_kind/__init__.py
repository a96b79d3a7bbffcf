"""A kind cluster whose node image is assembled on this machine, without an image registry."""
