"""The scheduler: one decision for all waiting jobs of the cluster."""
