"""Watches a plan in production: changed answers, drift of the inputs, alarms, metrics."""
