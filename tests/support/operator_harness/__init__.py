"""The operator in tests: its process, a stand-in API server, jobs, traces and watchers of them."""
