"""Print an answer while it is written; leaving the `async with` block early would stop the model.

Run: `stack up --detach`, then `python stack_client/examples/streaming.py --model smollm2-135m`
"""

import argparse
import asyncio

from stack_client import StackClient, errors


async def main(model: str) -> None:
    dialog = [
        {"role": "system", "content": "You are a poet."},
        {"role": "user", "content": "Write two lines about the sea."},
    ]
    async with StackClient() as client:
        try:
            async with client.inference.stream_chat(model, dialog, max_tokens=60, temperature=0.7) as events:
                async for event in events:
                    print(event.progress.delta.text, end="", flush=True)
        except errors.StackError as error:
            print(f"\n{error.reason}: {error.message}")
    print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    asyncio.run(main(parser.parse_args().model))
