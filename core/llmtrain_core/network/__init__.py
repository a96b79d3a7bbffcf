"""The network of a job: what its nodes offer, and what its transfers show."""
