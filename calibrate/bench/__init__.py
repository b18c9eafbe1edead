"""Savings of a plan in time and memory, by real generation, pruned and unpruned in one run."""
