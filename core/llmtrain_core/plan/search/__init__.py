"""Search for layouts and cluster sizes that fit."""
