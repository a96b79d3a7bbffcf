"""Training progress, polled from the pod of rank 0."""
