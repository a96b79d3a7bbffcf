"""Go programs that are built from pinned modules once, and cached."""
