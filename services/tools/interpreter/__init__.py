"""The code interpreter: Python of a model, run where it can do nothing but compute."""
