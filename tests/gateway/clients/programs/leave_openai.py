"""Begins work that would take for ever and goes away from it but stays alive; says so, and waits to be ended."""

import os
import sys

from openai import APITimeoutError, OpenAI

client = OpenAI(base_url=os.environ["GATEWAY_URL"] + "/v1", api_key="none", max_retries=0)
messages = [{"role": "user", "content": "hang"}]
chat = client.chat.completions.create(model="scripted", messages=messages, stream=True)
completion = client.completions.create(model="scripted", prompt="hang", stream=True)
response = client.responses.create(model="scripted", input="hang", stream=True)
for stream in (chat, completion, response):
    next(stream)
    stream.close()
try:
    client.with_options(timeout=0.5).chat.completions.create(model="scripted", messages=messages)
except APITimeoutError:
    print("left", flush=True)
sys.stdin.read()
