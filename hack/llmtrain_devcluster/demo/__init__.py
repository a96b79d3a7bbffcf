"""The main example from `kubectl apply` to the loss curve, on an embedded cluster."""
