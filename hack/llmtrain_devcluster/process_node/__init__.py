"""Nodes that run the containers of their pods as local processes."""
