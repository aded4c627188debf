"""Puts the services together: on one machine by `stack up`, elsewhere by the files in this folder."""
