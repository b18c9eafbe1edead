"""Answers with and without plans, judged and compared."""
