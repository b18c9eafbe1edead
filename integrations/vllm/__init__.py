"""Runs plans inside vLLM (docs/vllm.md). Importing this package imports neither vLLM nor torch."""
