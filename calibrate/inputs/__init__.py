"""What is measured: models, data sets, samples, and batches of model inputs."""
