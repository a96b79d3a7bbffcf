"""Simulated transfer times of jobs on fabrics with slow links."""
