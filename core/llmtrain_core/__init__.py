"""What a training job is, what it costs and where it should go: pure code, no I/O."""
