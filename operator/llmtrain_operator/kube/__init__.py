"""Access to the API server. The only package that imports the Kubernetes client library."""
