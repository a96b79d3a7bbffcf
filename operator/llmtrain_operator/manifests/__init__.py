"""The Kubernetes objects of a job as plain dictionaries. Pure functions."""
