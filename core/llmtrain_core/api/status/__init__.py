"""Status of the `LLMTrainingJob` resource."""
