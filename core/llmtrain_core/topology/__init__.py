"""From node objects to a tree of domains with free capacity."""
