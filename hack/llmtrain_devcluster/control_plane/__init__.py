"""etcd and the Kubernetes control plane as local processes."""
