"""In which order jobs get their turn: decisions only."""
