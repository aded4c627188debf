"""Ask a model one question.

Run: `stack up --detach`, then `python stack_client/examples/hello.py --model smollm2-135m`
"""

import argparse
import asyncio

from stack_client import StackClient, content


async def main(model: str) -> None:
    async with StackClient() as client:
        answer = await client.inference.chat(model, "Say hello.", max_tokens=50)
    print(content.text_of(answer.completion_message.content))
    print(f"{answer.usage.completion_tokens} tokens")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    asyncio.run(main(parser.parse_args().model))
