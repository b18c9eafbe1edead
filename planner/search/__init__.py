"""The search for plans: Optuna studies on the measured loss."""
