"""The Helm chart: the model of its values, and the files that are generated from it."""
