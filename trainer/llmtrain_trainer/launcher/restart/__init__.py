"""Coordinated restarts, hang detection and stops of all launchers of a job."""
