"""Measuring: a model runs over a small data set, and probes of its samples make a profile."""
