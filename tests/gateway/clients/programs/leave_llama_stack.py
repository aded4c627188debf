"""Begins work that would take for ever and goes away from it but stays alive; says so, and waits to be ended."""

import os
import sys

from llama_stack_client import Agent, LlamaStackClient

client = LlamaStackClient(base_url=os.environ["GATEWAY_URL"], max_retries=0)
messages = [{"role": "user", "content": "hang"}]
agent = Agent(client, model="scripted", instructions="Help.")
chat = client.inference.chat_completion(model_id="scripted", messages=messages, stream=True)
turn = client.agents.turn.create(
    agent_id=agent.agent_id, session_id=agent.create_session("s"), messages=messages, stream=True
)
for stream in (chat, turn):
    for chunk in stream:
        if "one" in chunk.to_json():
            break
    stream.response.close()
print("left", flush=True)
sys.stdin.read()
