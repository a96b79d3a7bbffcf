"""Shape, parameters and FLOPs of a model."""
