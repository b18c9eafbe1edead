"""What a plan saves in time and memory: real generation, pruned beside unpruned in one run."""
