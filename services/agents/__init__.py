"""Agents: sessions, turns and steps over a durable event log; models are reached through the inference service."""
