"""Draw dashboards with the components of Grafana in a browser, against a real Prometheus."""
