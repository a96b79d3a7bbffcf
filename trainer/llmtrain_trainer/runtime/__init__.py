"""Code that all other parts of the trainer use."""
