"""Training and measuring of the built-in vision-language model (calibrate/embedded)."""
