"""Evaluation: answers with and without plans, judged and compared."""
