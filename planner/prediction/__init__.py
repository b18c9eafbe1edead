"""Prediction of the cost and the loss of plans from a profile, without the model."""
