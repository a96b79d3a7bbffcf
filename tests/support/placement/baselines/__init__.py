"""Placement algorithms of other schedulers, restated from their documents."""
