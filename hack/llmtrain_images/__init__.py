"""Container images of llmtrain, and what builds and runs them without an image registry."""
