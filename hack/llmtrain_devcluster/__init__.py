"""A real Kubernetes control plane as local processes, with simulated nodes.

Nothing here pulls an image or needs a container runtime: the control plane's binaries are built
from Go modules, and a pod's containers either follow a script or run as local processes.
"""
