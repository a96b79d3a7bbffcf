"""Racks of network namespaces, and ranks in them."""
