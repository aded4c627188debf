"""An answer as a Python object: the model can write nothing that does not fit the type.

Run: `stack up --detach`, then `python stack_client/examples/structured.py --model smollm2-135m`
"""

import argparse
from typing import Literal

from pydantic import BaseModel, Field

from stack_client import Agent


class Ticket(BaseModel):
    """What a customer wants."""

    subject: str = Field(max_length=40)
    urgency: Literal["low", "high"]


def main(model: str) -> None:
    agent = Agent(model, instructions="Make a ticket of what is said.", output_type=Ticket, max_tokens=100)
    ticket = agent.run("The heating has failed and it is freezing!").output
    print(type(ticket).__name__, ticket.urgency, repr(ticket.subject))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    main(parser.parse_args().model)
