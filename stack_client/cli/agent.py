"""`stack agent`: run agents, look at what they did, go on with what waits."""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from llamastack import v1
from stack_client import content
from stack_client.agent import Agent
from stack_client.agent_tools import ApprovalPolicy
from stack_client.cli.connection import add_target, choose_model, connected
from stack_client.cli.options import Subparsers, print_json
from stack_client.cli.sampling import add_sampling, prompt_of, sampling_of
from stack_client.cli.trace import trace
from stack_client.errors import InvalidArgumentError, NotFoundError
from stack_client.portal import SyncStackClient, SyncStream
from stack_client.printing import converse, describe, print_events
from stack_client.results import AgentResult, Answers, Pending
from stack_client.turn_driver import TurnDriver


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    parser = subparsers.add_parser("agent", help="run agents, see what they did, decide what waits")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run_ = commands.add_parser("run", help="ask an agent once")
    run_.add_argument("prompt", nargs="?", metavar="PROMPT", help="the question; else it is read from the pipe")
    run_.add_argument("--attach", action="append", default=[], metavar="FILE", help="a file that belongs to it")
    run_.add_argument("--json", action="store_true", help="print the turn as JSON at its end")
    _add_agent(run_)
    run_.set_defaults(command=run, usage_error=run_.error)
    chat_ = commands.add_parser("chat", help="talk with an agent; Ctrl-D leaves")
    _add_agent(chat_)
    chat_.set_defaults(command=chat)
    sessions_ = commands.add_parser("sessions", help="list sessions, newest first")
    sessions_.add_argument("--agent", default="", metavar="ID", help="of this agent only")
    sessions_.add_argument("--json", action="store_true", help="print JSON")
    add_target(sessions_)
    sessions_.set_defaults(command=sessions)
    show_ = commands.add_parser("show", help="what happened in a turn, or in all turns of a session, with times")
    show_.add_argument("id", metavar="TURN|SESSION")
    show_.add_argument("--json", action="store_true", help="print JSON")
    add_target(show_)
    show_.set_defaults(command=show)
    resume_ = commands.add_parser("resume", help="decide about calls that wait, and follow the turn to its end")
    resume_.add_argument("id", metavar="TURN|SESSION")
    resume_.add_argument("--approve", action="append", default=[], metavar="CALL", help="let a call run; `all` for all")
    resume_.add_argument("--deny", action="append", default=[], metavar="CALL", help="do not let it run; `all` for all")
    resume_.add_argument("--why", default="", metavar="TEXT", help="why calls are denied; the model reads it")
    resume_.add_argument(
        "--answer", action="append", default=[], metavar="CALL=VALUE", help="answer a tool: text, or a JSON object"
    )
    add_target(resume_)
    resume_.set_defaults(command=resume)
    cancel_ = commands.add_parser("cancel", help="stop a turn")
    cancel_.add_argument("id", metavar="TURN|SESSION")
    add_target(cancel_)
    cancel_.set_defaults(command=cancel)


def _add_agent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="MODEL", help="identifier (default: the first that is ready)")
    parser.add_argument("--instructions", default="", metavar="TEXT", help="the system message")
    parser.add_argument("--tool", action="append", default=[], metavar="GROUP", help="tools of the stack; repeatable")
    parser.add_argument("--tool-choice", default="", metavar="CHOICE", help="auto, required, none, or a tool")
    parser.add_argument("--memory", action="append", default=[], metavar="WHAT", help="banks, files; repeatable")
    parser.add_argument("--shield", action="append", default=[], metavar="SHIELD", help="shields; `policy` for all")
    parser.add_argument("--approvals", choices=("never", "always", "writes"), help="which calls wait for a person")
    parser.add_argument("--session", metavar="ID", help="go on with a session that was begun alike")
    add_target(parser)
    add_sampling(parser)


def _agent(arguments: argparse.Namespace, client: SyncStackClient) -> Agent:
    return Agent(
        choose_model(client, arguments.model),
        instructions=arguments.instructions,
        tools=arguments.tool,
        tool_choice=arguments.tool_choice,
        memory=arguments.memory,
        shields=arguments.shield,
        approvals=arguments.approvals,
        session_id=arguments.session,
        client=client,
        **sampling_of(arguments),
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask once; what waits for a person is said on stderr."""
    prompt = prompt_of(arguments.prompt)
    if not prompt:
        arguments.usage_error("the prompt is empty")
    with connected(arguments) as client:
        agent = _agent(arguments, client)
        if arguments.json:
            result: AgentResult | None = agent.run(prompt, attachments=arguments.attach)
            print_json(_json(result.turn if result else v1.Turn()))
        else:
            result = print_events(agent.stream(prompt, attachments=arguments.attach))
        return _told(result)


def chat(arguments: argparse.Namespace) -> int:
    """Talk until Ctrl-D."""
    with connected(arguments) as client:
        agent = _agent(arguments, client)
        converse(agent)
        if agent.session_id:
            print(f"session {agent.session_id}", file=sys.stderr)
    return 0


def sessions(arguments: argparse.Namespace) -> int:
    """List sessions."""
    with connected(arguments) as client:
        rows = [
            {
                "session_id": session.session_id,
                "name": session.session_name,
                "model": agent.agent_config.model,
                "agent_id": agent.agent_id,
                "started_at": session.started_at.ToJsonString(),
            }
            for agent in _agents(client, arguments.agent)
            for session in client.agents.list_sessions(agent.agent_id)
        ]
        rows.sort(key=lambda row: row["started_at"], reverse=True)
    if arguments.json:
        print_json(rows)
        return 0
    for row in rows:
        print(f"{row['session_id']}  {row['started_at'][:19]}  {row['model']}  {row['name']}".rstrip())
    return 0


def _agents(client: SyncStackClient, agent_id: str) -> Iterator[v1.Agent]:
    if agent_id:
        yield client.agents.get(agent_id)
    else:
        yield from client.agents.list()


def show(arguments: argparse.Namespace) -> int:
    """Print what happened."""
    with connected(arguments) as client:
        turns = _turns(client, arguments.id)
    if arguments.json:
        print_json([_json(turn) for turn in turns])
        return 0
    for place, turn in enumerate(turns):
        if place:
            print()
        for line in trace(turn):
            print(line)
    return 0


def resume(arguments: argparse.Namespace) -> int:
    """Decide, and follow the turn."""
    with connected(arguments) as client:
        turn = _turns(client, arguments.id)[-1]
        decided = _decided(arguments, [Pending.of(one) for one in turn.pending], turn.turn_id)
        after = 0
        if decided is not None:
            after = turn.last_sequence
            client.agents.resume_turn(turn.turn_id, list(decided.responses), decisions=list(decided.decisions))
        driver = TurnDriver(client.client, tools={}, approvals=ApprovalPolicy())
        return _told(print_events(SyncStream(driver.events(turn.turn_id, after=after, again=True))))


def _decided(arguments: argparse.Namespace, pending: list[Pending], turn_id: str) -> Answers | None:
    answers = Answers(turn_id=turn_id, pending=pending)
    everything = [one.id for one in pending if one.kind in {"approval", "lost"}]
    for name in everything if "all" in arguments.approve else arguments.approve:
        answers = answers.approve(name, by="stack agent resume")
    for name in everything if "all" in arguments.deny else arguments.deny:
        answers = answers.deny(name, arguments.why, by="stack agent resume")
    for given in arguments.answer:
        name, equals, value = given.partition("=")
        if not equals:
            raise InvalidArgumentError(f"--answer {given!r}: write CALL=VALUE")
        answers = answers.answer(name, _value(value), by="stack agent resume")
    return answers if answers.decisions or answers.responses else None


def _value(text: str) -> Any:  # noqa: ANN401 (JSON)
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def cancel(arguments: argparse.Namespace) -> int:
    """Stop a turn."""
    with connected(arguments) as client:
        turn = client.agents.cancel_turn(_turns(client, arguments.id)[-1].turn_id)
    print(f"turn {turn.turn_id} is {v1.TurnStatus.Name(turn.status).removeprefix('TURN_STATUS_').lower()}")
    return 0


def _turns(client: SyncStackClient, name: str) -> list[v1.Turn]:
    """The turn of that id, or the turns of the session of that id.

    Raises:
        NotFoundError: If there is neither.
    """
    try:
        return [client.agents.get_turn(name)]
    except NotFoundError:
        pass
    try:
        found = list(client.agents.get_session(name).turns)
    except NotFoundError as error:
        message = f"there is no turn and no session {name!r}; see `stack agent sessions`"
        raise NotFoundError(message) from error
    if not found:
        raise NotFoundError(f"session {name} has no turns yet")
    return found


def _told(result: AgentResult | None) -> int:
    if result is None:
        return 1
    print(f"session {result.session_id}  turn {result.turn_id}", file=sys.stderr)
    for one in result.pending:
        print(f"{describe(one)}\n  stack agent resume {result.turn_id} --approve {one.id}", file=sys.stderr)
    return 0


def _json(turn: v1.Turn) -> dict[str, Any]:
    from google.protobuf import json_format  # noqa: PLC0415 (only here)

    answer: dict[str, Any] = content.plain(json_format.MessageToDict(turn, preserving_proto_field_name=True))
    return answer
