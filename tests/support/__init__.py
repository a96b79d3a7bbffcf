"""What tests share: builders, harnesses, simulators, baselines and an oracle."""
