"""The values of the chart as pydantic models: the source of values.yaml, its schema and README."""
