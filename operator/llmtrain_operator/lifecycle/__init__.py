"""The life of one job: observe, decide (pure, one policy per file), apply."""
