"""The command line `llmtrain`, also available as `kubectl llmtrain`."""
