"""Dashboards and rules of the chart as code: `python -m llmtrain_monitoring.write`."""
