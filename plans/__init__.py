"""RUN: the plan file, the selectors, and the executor that applies a plan to a model."""
