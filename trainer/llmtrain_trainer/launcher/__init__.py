"""The process of a pod that starts its ranks and serves their metrics."""
