"""An agent that calls a Python function; type hints and docstring tell the model how.

Run: `stack up --detach`, then `python stack_client/examples/agent_tool.py --model smollm2-135m`
Small models rarely call tools by themselves; a larger one will.
"""

import argparse

from stack_client import Agent, tool


@tool(effect="read", timeout=10)  # optional: it changes nothing, and has ten seconds
def get_weather(city: str, days: int = 1) -> str:
    """The weather forecast of a city.

    Args:
        city: Name of the city.
        days: How many days ahead, 1 is today.
    """
    return f"sunny in {city} for {days} day(s)"


def main(model: str) -> None:
    agent = Agent(model, instructions="Use the tools.", tools=[get_weather])
    for event in agent.stream("How is the weather in Oslo?"):
        if event.tool_call:
            print("calls", event.tool_call.tool_name, event.tool_call.arguments_json)
        if event.result:
            print(event.result.text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    main(parser.parse_args().model)
