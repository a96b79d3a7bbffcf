"""Nodes whose pods are real: the containers of a bound pod run as local processes."""
