"""Start programs as their image runs them, in a private mount namespace."""
