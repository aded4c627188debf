"""Agents that work together: one asks another like a tool, one hands the dialog over.

Run: `stack up --detach`, then `python stack_client/examples/agents.py --model smollm2-135m`
Small models rarely call tools by themselves; a larger one will.
"""

import argparse

from stack_client import Agent


def main(model: str) -> None:
    poet = Agent(model, name="poet", description="Writes a line of verse.", instructions="Write one line of verse.")
    host = Agent(model, instructions="Ask the poet for verse.", tools=[poet], max_tokens=60)
    result = host.run("Ask the poet for a line about rain.")
    print("asked:", ", ".join(call.tool_name for call in result.tool_calls) or "nobody")
    print(result)

    billing = Agent(model, name="billing", description="Knows all about invoices.", max_tokens=60)
    desk = Agent(model, instructions="Hand over what is not yours.", handoffs=[billing], max_tokens=60)
    result = desk.run("My invoice is wrong.")
    print("handed over:", ", ".join(call.tool_name for call in result.tool_calls) or "no")
    print(result)
    print(desk.run("Who are you?"))  # from now on the other one answers in this session


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    main(parser.parse_args().model)
