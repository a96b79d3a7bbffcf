"""Metrics of the operator. The computations are pure; `collector.py` reads the caches at a scrape.

Labels are bounded. The only names in them are those of jobs, namespaces, levels and domains.
"""
