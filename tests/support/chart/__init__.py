"""The Helm chart in tests: sets of values, its manifests, and the kinds that it may create."""
