"""The code interpreter through the real service."""

import asyncio
import shutil
from pathlib import Path

from llamastack import v1
from stack_client.content import struct, text_of
from tests.tools.interpreter.conftest import Open
from tests.tools.mesh import tools_mesh

TOOL = "builtin::code_interpreter/code_interpreter"


async def test_code_runs_through_the_service_with_a_state_for_each_session(
    home: Path, opened: Open, cache_dir: Path
) -> None:
    async with opened("wasm") as interpreter:  # compiles, where no test before did
        await interpreter.text("1")
    shutil.copytree(cache_dir, home / "cache", dirs_exist_ok=True)
    async with tools_mesh(home) as mesh:
        call = {"session_id": "s"}
        first = await mesh.invoke(TOOL, kwargs=struct({"code": "n = 41\nopen('n.txt', 'w').write('x')"}), **call)
        assert "Files written: n.txt" in text_of(first.content)
        assert first.attachments[0].content.content.items[0].text == "x"
        again = await mesh.invoke(TOOL, kwargs=struct({"code": "n + 1"}), **call)
        assert text_of(again.content) == "completed\n[stdout]\n42\n[/stdout]"
        other = await mesh.invoke(TOOL, kwargs=struct({"code": "n"}), tenant="other", **call)
        assert other.error_code == 1
        assert "NameError" in other.error_message
        events = await mesh.stream(TOOL, kwargs=struct({"code": "print('seen')"}))
        assert "seen\n" in [event.output.text for event in events]
        assert events[-1].WhichOneof("event") == "result"
        refused = await mesh.invoke(TOOL, kwargs=struct({"source": "1"}))
        assert refused.error_code == 400


async def test_a_caller_that_leaves_ends_the_code(home: Path, opened: Open, cache_dir: Path) -> None:
    async with opened("wasm") as interpreter:
        await interpreter.text("1")
    shutil.copytree(cache_dir, home / "cache", dirs_exist_ok=True)
    async with tools_mesh(home) as mesh:
        sessions = home / "data" / "tools" / "providers" / "code-interpreter" / "sessions"
        request = {"code": "while True: pass"}
        started = mesh.start(TOOL, kwargs=struct(request))
        async with asyncio.timeout(30):
            while not list(sessions.iterdir()):
                await asyncio.sleep(0.01)
            started.cancel()
            while list(sessions.iterdir()):
                await asyncio.sleep(0.01)
        result = await mesh.invoke(TOOL, kwargs=struct({"code": "1"}))
        assert isinstance(result, v1.ToolInvocationResult)
        assert "[stdout]\n1\n" in text_of(result.content)
