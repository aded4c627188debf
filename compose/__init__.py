"""Putting the services together: one command on one machine, containers, and the demonstration."""
