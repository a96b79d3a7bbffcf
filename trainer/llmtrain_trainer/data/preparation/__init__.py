"""Preparation of a corpus: read, filter, deduplicate, tokenize, pack."""
