"""The plan of each job, and the estimated duration of its allocation."""
