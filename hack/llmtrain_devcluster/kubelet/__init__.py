"""Kubelet behavior shared by scripted nodes and process nodes."""
