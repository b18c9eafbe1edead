"""IMPORT: models with a plan, for tools that evaluate models."""
