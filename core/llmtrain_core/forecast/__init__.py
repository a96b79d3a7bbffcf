"""The plan of a job on its placement, and the document that describes it."""
