"""Measures all that docs/planner.md says, and writes that page: `make benchmark-planner`."""
