"""Input and output of `llmtrain plan`."""
