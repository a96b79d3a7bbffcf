"""The reconcile loop of a job: observe, decide, apply."""
