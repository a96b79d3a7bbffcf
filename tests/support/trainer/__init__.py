"""The trainer in tests: job specifications, forked ranks and launchers."""
