"""What every policy reads and writes: the observation of a job and the draft of its status."""
