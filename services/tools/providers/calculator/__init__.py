"""Exact arithmetic on this machine, for questions that would go to Wolfram Alpha."""
