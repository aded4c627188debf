"""Find the text that is closest in meaning to a question.

Run: `stack up --detach`, then `python stack_client/examples/embeddings.py --model all-minilm-l6-v2`
"""

import argparse
import asyncio

from stack_client import StackClient

TEXTS = ["The cat sleeps on the sofa.", "Stocks fell on Monday.", "It will rain in Oslo."]


async def main(model: str) -> None:
    async with StackClient() as client:
        question, *vectors = await client.inference.embed(model, ["Where does the cat sleep?", *TEXTS])
    # Vectors have length 1, so their product is the cosine of the angle between them.
    scores = [sum(a * b for a, b in zip(question, vector, strict=True)) for vector in vectors]
    for score, text in sorted(zip(scores, TEXTS, strict=True), reverse=True):
        print(f"{score:.3f}  {text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    asyncio.run(main(parser.parse_args().model))
