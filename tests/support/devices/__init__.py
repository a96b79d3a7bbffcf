"""Devices of dynamic resource allocation as drivers publish them."""
