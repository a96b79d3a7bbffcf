"""`llmtrain run`: a job on this computer."""
