"""What is created for a job, as plain dictionaries: pure."""
