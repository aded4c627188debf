"""An agent that answers from files: they are read once, and again only when they change.

Run: `stack up --detach`, then `python stack_client/examples/memory.py --model smollm2-135m`
"""

import argparse
import tempfile
from pathlib import Path

from stack_client import Agent, Memory

MANUAL = "# Cooling\n\nThe engine is cooled by glycol.\n\n# Oil\n\nThe oil is changed every 500 hours.\n"


def main(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manual.md").write_text(MANUAL)
        memory = Memory(f"{folder}/*.md")
        for passage in memory.query("How is the engine cooled?", k=1):
            print(f"{passage.citation}: {passage.text!r}")
        agent = Agent(model, memory=memory, instructions="Answer from the passages in one sentence.", max_tokens=60)
        print(agent.run("How is the engine cooled?"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    main(parser.parse_args().model)
