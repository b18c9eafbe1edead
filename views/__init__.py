"""SHOW: views of plans, profiles, fronts and evaluations; the only folder that uses rich."""
