"""Input files, cluster access and output shared by the commands."""
