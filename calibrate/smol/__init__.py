"""The second built-in model: a LLaVA on SmolLM2-135M-Instruct, assembled from an installed package."""
