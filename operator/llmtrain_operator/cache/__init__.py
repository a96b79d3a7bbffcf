"""Informers, their records, and a typed view of stored jobs."""
