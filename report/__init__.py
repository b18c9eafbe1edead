"""EXPLAIN: an HTML report of what was measured, planned and kept."""
