"""Measures all that docs/planner-results.md says and writes it there: `make benchmark-planner`."""
