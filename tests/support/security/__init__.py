"""Tenants that attack each other, and measures of what an attack does to the others."""
