"""The main process of a pod: it starts the ranks and serves their metrics."""
