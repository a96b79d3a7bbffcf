"""Devices by dynamic resource allocation (DRA): what jobs ask for, and what nodes have. Pure.

The devices of ResourceSlices become amounts of a node, like extended resources, and the claims of a
pod become amounts that it takes. So placement and queue know nothing of slices and claims.
"""
