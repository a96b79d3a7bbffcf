"""Code that every other part of the trainer may use."""
