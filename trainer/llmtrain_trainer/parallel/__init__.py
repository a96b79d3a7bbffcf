"""How one model is spread over ranks: mesh, tensor, data and pipeline parallelism."""
