"""Weights without training state: read from checkpoints, import from and export to Hugging Face."""
