"""How the launchers of one gang agree: who sends what, what follows, and over which wire."""
