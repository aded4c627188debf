"""Measurements of what the budgets promise; `make bench` runs them all. No test asserts a time."""
