"""Step time, goodput and cost, calibrated against published runs."""
