"""The command line: `llmtrain`, also callable as `kubectl llmtrain`."""
