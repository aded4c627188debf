"""The client without `await`, for scripts and notebooks.

Run: `stack up --detach`, then `python stack_client/examples/sync_client.py --model smollm2-135m`
"""

import argparse

from stack_client import SyncStackClient


def main(model: str) -> None:
    with SyncStackClient() as client:
        print("models:", ", ".join(found.identifier for found in client.models.list()))
        print(client.inference.complete(model, "Once upon a time", max_tokens=20).content)
        for event in client.inference.stream_chat(model, "Count to three.", max_tokens=20):
            print(event.progress.delta.text, end="", flush=True)
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    main(parser.parse_args().model)
