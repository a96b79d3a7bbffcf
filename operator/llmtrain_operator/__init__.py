"""The operator: makes what the core decides so, in a cluster."""
