"""A tool that runs only when a person allows it. The turn waits in the stack, for days if need be.

Run: `stack up --detach`, then `python stack_client/examples/approval.py --model smollm2-135m`
"""

import argparse

from stack_client import Agent, tool


@tool(approval="always")
def refund(order_id: str, amount: float) -> str:
    """Give money back, in euros."""
    print(f"pays {amount} EUR")
    return f"refunded {amount} EUR on {order_id}"


def main(model: str) -> None:
    # Small models call nothing by themselves, so the call is demanded, and the second step ends the turn.
    agent = Agent(model, tools=[refund], tool_choice="refund", max_infer_iters=2)
    result = agent.run("Refund order A17.")
    for one in result.pending:
        print(f"waits: {one.tool} of {one.arguments['amount']} EUR on {one.arguments['order_id']}")
    # `result.approve()` would do; this one pays less than the model wanted.
    print(agent.run(result.approve(arguments={"order_id": "A17", "amount": 3.0}, by="Ada")))
    result = agent.run("Refund it again.")
    print(agent.run(result.deny(why="once is enough", by="Ada")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    main(parser.parse_args().model)
