"""The way to the API server; the only importer of the Kubernetes client."""
