"""EXPLAIN: one page that shows what was measured, planned and kept."""
