"""`llmtrain run`: run a job on this computer."""
