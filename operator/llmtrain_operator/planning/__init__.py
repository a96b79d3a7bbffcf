"""The plan of each job, and how long it will hold its nodes."""
