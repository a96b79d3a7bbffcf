"""Agreement of all launchers of a job on restarts, hangs and stops."""
