"""What a pod tells Prometheus about its training."""
