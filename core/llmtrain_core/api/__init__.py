"""The contract `llmtrain.dev/v1alpha1`: resource models, conditions, labels, names."""
