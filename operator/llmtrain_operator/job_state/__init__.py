"""What every policy reads and writes: the observation and the status draft."""
