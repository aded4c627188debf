"""A program dies while its tool runs; another one finishes the turn, knowing nothing but the session.

Run: `stack up --detach`, then `python stack_client/examples/resume.py --model smollm2-135m`
"""

import argparse
import os
import signal
import subprocess
import sys

from stack_client import Agent, tool


@tool(effect="idempotent")  # for it is called twice, the first time in vain
def book_room(day: str) -> str:
    """Book the meeting room for a day."""
    if arguments.crash:
        print(agent.session_id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    print("books the room on", day)
    return f"the room is yours on {day}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--crash", action="store_true", help="what the first program does")
    arguments = parser.parse_args()
    # Small models call nothing by themselves, so the call is demanded, and the second step ends the turn.
    agent = Agent(arguments.model, tools=[book_room], tool_choice="book_room", max_infer_iters=2)
    if arguments.crash:
        agent.run("Book the room for Monday.")
    else:
        command = [sys.executable, __file__, "--crash", "--model", arguments.model]
        died = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 (this program)
        print("the first program ended with", signal.Signals(-died.returncode).name)
        agent.session_id = died.stdout.strip()
        print(agent.resume())
