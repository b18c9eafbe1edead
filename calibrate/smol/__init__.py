"""The second built-in model: a LLaVA on SmolLM2-135M-Instruct; see MODEL_CARD.md.

The package ships what tpcal trained, the projector and the adapters. The language model comes from
a package that the user installs, and the vision tower is that of `tpcal.calibrate.embedded`.
"""
