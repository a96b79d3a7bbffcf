"""The decoder, free of parallelism."""
