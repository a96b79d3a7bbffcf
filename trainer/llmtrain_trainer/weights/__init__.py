"""Weights without training state: from checkpoints, and to and from Hugging Face folders."""
