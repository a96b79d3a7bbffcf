"""The scheduler: one loop that decides about all pending jobs of the cluster."""
