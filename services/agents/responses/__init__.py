"""Responses, conversations and prompts in OpenAI's sense, made of sessions and turns."""
