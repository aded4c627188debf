"""An agent that answers from a folder of documents, and shows what it found there.

Run: `stack up --detach`, then `python stack_client/examples/rag_folder.py --model smollm2-135m --files 'docs/**/*.pdf'`
"""

import argparse
import tempfile
from pathlib import Path

from stack_client import Agent, content

SAMPLE = {
    "leave.md": "# Leave\n\nEverybody has 30 days of leave each year.\n",
    "travel.md": "# Travel\n\nTrains are booked by the office, in second class.\n",
}


def main(model: str, files: str, question: str) -> None:
    # Files are read when the agent first runs, and again only when they have changed.
    agent = Agent(model, memory=files, instructions="Answer from the passages in one sentence.", max_tokens=60)
    for event in agent.stream(question):
        if event.retrieval:
            print("found:", content.text_of(event.retrieval.inserted_context))
        print(event.text, end="", flush=True)
    print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--files", help="a pattern; default: two files that the example writes")
    parser.add_argument("--question", default="How many days of leave do I have?")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, text in SAMPLE.items():
            (Path(folder) / name).write_text(text)
        main(arguments.model, arguments.files or f"{folder}/*.md", arguments.question)
