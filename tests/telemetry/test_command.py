"""`stack trace` prints what happened."""

import asyncio
import json
import os
import sys
from pathlib import Path

from stack_client.home import Home, ServiceRecord, StackRecord
from tests.stacks import environment
from tests.telemetry.mesh import TelemetryMesh, telemetry_mesh
from tests.telemetry.test_turns import begin, tree_of


async def command(home: Path, *words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stack_client.cli", "trace", *words, "--home", str(home),
        env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


def declare(mesh: TelemetryMesh, home: Path) -> Home:
    """Let commands find the services."""
    place = Home.choose(home)
    services = {name: ServiceRecord(process=name, addresses=[at]) for name, at in mesh.client.addresses.items()}
    place.write_record(StackRecord(pid=os.getpid(), version="test", started_at="", config=None, services=services))
    return place


async def test_a_turn_is_shown_as_a_tree_by_any_of_its_ids(home: Path) -> None:
    async with telemetry_mesh(home, "inference", "tools", "agents") as mesh:
        with declare(mesh, home).locked():
            turn_id = await begin(mesh.client.agents, "when is noon?")
            async for _ in mesh.client.agents.watch_turn(turn_id):
                pass
            tree = await tree_of(mesh, turn_id)
            trace_id = next(iter(tree.values())).trace_id
            code, shown, _ = await command(home, turn_id)
            assert code == 0
            assert shown.startswith(f"trace {trace_id}")
            lines = [line.split(" ms  ", 1)[1] for line in shown.splitlines()[1:]]
            assert lines[0].startswith("AgentsService/CreateTurn")
            assert lines[1].startswith("  agents.turn")
            assert "turn_status=completed" in lines[1]
            assert any(line.startswith("    InferenceService/StreamChatCompletion") for line in lines)
            assert len(lines) == len(tree)
            assert (await command(home, trace_id))[1] == shown
            (as_json,) = json.loads((await command(home, trace_id, "--json"))[1])
            assert {span["span_id"] for span in as_json["spans"]} == set(tree)
            assert trace_id in (await command(home))[1]
            code, _, error = await command(home, "nosuch")
            assert code == 1
            assert "no trace, turn, session or request 'nosuch' was recorded" in error
