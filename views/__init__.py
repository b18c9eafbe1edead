"""SHOW: plans, profiles, fronts and evaluations on the terminal; the only folder with rich."""
