"""Models with a plan, for tools that evaluate models."""
