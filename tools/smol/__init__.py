"""Training and measuring of the second built-in model (calibrate/smol)."""
