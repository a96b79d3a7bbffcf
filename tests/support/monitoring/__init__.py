"""A real Prometheus with a real job and operator, and the queries of dashboards and rules."""
