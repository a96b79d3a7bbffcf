"""Ways to add tensors up over the copies of a model."""
