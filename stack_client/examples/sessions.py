"""Go on with a session from another agent, as after a restart of your program: the stack remembers what was said.

Run: `stack up --detach`, then `python stack_client/examples/sessions.py --model smollm2-135m`
"""

import argparse
import asyncio

from stack_client import Agent, StackClient, content


async def main(model: str) -> None:
    async with StackClient() as client:
        first = Agent(model, client=client, max_tokens=40)
        session_id = (await first.arun("My name is Ada.")).session_id
        later = Agent(model, client=client, max_tokens=40, session_id=session_id)
        await later.arun("What is my name?")
        session = await client.agents.get_session(session_id)
    for turn in session.turns:
        print("user:     ", content.text_of(turn.input_messages[0].user.content))
        print("assistant:", content.text_of(turn.output_message.content))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    asyncio.run(main(parser.parse_args().model))
