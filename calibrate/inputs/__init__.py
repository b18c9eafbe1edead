"""Inputs of measurements: models, data sets, samples, and batches of model inputs."""
