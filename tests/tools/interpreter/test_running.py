"""What a call gives: values, output, errors, files, and what stays for the next."""

import asyncio
from pathlib import Path

import psutil
import pytest

from services.tools.interpreter import result
from services.tools.provider import Access
from stack_client.errors import InvalidArgumentError
from tests.tools.interpreter.conftest import GROUP, Interpreter, Open, Recorder, names_of, shown, until

PNG = b"\x89PNG\r\n\x1a\n"


async def test_a_last_expression_is_shown_as_by_an_interpreter(opened: Open, tier: str) -> None:
    async with opened(tier) as interpreter:
        assert await interpreter.text("x = 20\nx + 1") == "completed\n[stdout]\n21\n[/stdout]"
        assert await interpreter.text("x = 20") == "completed"
        assert await interpreter.text("None") == "completed"


async def test_output_of_both_streams_is_told_apart(opened: Open, tier: str) -> None:
    async with opened(tier) as interpreter:
        code = "import sys\nprint('läuft')\nprint('oh', file=sys.stderr)"
        assert await interpreter.text(code) == "completed\n[stdout]\nläuft\n[/stdout]\n[stderr]\noh\n[/stderr]"


async def test_an_exception_is_told_with_the_frames_of_the_code(opened: Open, tier: str) -> None:
    async with opened(tier) as interpreter:
        answer = await interpreter.run("def half(n):\n    return n / 0\nprint('before')\nhalf(1)")
        assert answer.error_code == 1
        assert "before" in shown(answer)
        assert answer.error_message.startswith("Traceback")
        assert 'File "<cell 1>", line 4' in answer.error_message
        assert "    return n / 0" in answer.error_message
        assert answer.error_message.rstrip().endswith("ZeroDivisionError: division by zero")
        assert "driver" not in answer.error_message
        answer = await interpreter.run("print('a'")
        assert "SyntaxError" in answer.error_message
        answer = await interpreter.run("import json\njson.loads('{')")
        assert "JSONDecodeError" in answer.error_message


async def test_sys_exit_is_an_end_and_not_an_error_unless_it_says_so(opened: Open, tier: str) -> None:
    async with opened(tier) as interpreter:
        assert await interpreter.text("print(1)\nexit()\nprint(2)") == "completed\n[stdout]\n1\n[/stdout]"
        answer = await interpreter.run("import sys\nsys.exit('no data')")
        assert (answer.error_code, answer.error_message) == (1, "the code ended itself with status no data")


async def test_variables_functions_classes_and_imports_stay_in_a_session(opened: Open, tier: str) -> None:
    async with opened(tier) as interpreter:
        first = "import math as m\nfrom dataclasses import dataclass\nn = 2\ndef area():\n    return n * m.pi\n"
        first += "@dataclass\nclass Point:\n    x: int = 1\np = Point(5)\nshared = [1]\nalias = shared"
        assert await interpreter.text(first, session="s") == "completed"
        assert "6.28" in await interpreter.text("area()", session="s")
        assert "9.42" in await interpreter.text("n = 3\narea()", session="s")
        assert "(True, 5, Point(x=7))" in await interpreter.text("isinstance(p, Point), p.x, Point(7)", session="s")
        assert "[1, 2]" in await interpreter.text("alias.append(2)\nshared", session="s")
        assert "ZeroDivisionError" in await interpreter.text("kept = 1\n1 / 0", session="s")
        assert "1" in await interpreter.text("kept", session="s")


async def test_state_is_nobody_elses(opened: Open, tier: str) -> None:
    async with opened(tier) as interpreter:
        await interpreter.text("secret = 1\nopen('secret.txt', 'w').close()", session="s", tenant="a")
        look = "import os\nprint('secret' in globals(), os.listdir('.'))"
        assert "True ['secret.txt']" in await interpreter.text(look, session="s", tenant="a")
        for session, tenant in (("s", "b"), ("t", "a"), ("s", ""), ("", "a"), ("as", "")):
            assert "False []" in await interpreter.text(look, session=session, tenant=tenant)


async def test_a_session_survives_the_service(opened: Open, tier: str) -> None:
    async with opened(tier) as interpreter:
        await interpreter.text("def f(a): return a + b\nb = 4\nopen('f.txt', 'w').write('kept')", session="s")
        await interpreter.text("b")
    async with opened(tier) as interpreter:
        assert "5 kept" in await interpreter.text("print(f(1), open('f.txt').read())", session="s")
        assert len(interpreter.folders) == 1, "a call without a session left its folder"


async def test_what_cannot_be_kept_is_named(opened: Open, cache_dir: Path) -> None:
    async with opened("wasm") as interpreter:
        answer = await interpreter.text("f = open('a.txt', 'w')\nn = 1", session="s")
        assert "Not kept for the next call: f (TextIOWrapper" in answer
        assert "1" in await interpreter.text("n", session="s")


async def test_a_call_that_is_stopped_leaves_the_variables_as_before(opened: Open, tier: str) -> None:
    async with opened(tier, seconds=2.0) as interpreter:
        await interpreter.text("n = 1", session="s")
        answer = await interpreter.run("n = 2\nwhile True: pass", session="s")
        assert answer.error_code == 2
        assert "stopped after" in answer.error_message
        assert "Variables are as before this call" in answer.error_message
        assert "[stdout]\n1\n" in await interpreter.text("n", session="s")


async def test_output_comes_while_the_code_runs_and_a_cancelled_call_leaves_nothing(opened: Open, tier: str) -> None:
    async with opened(tier, wasm={"warm": 0}) as interpreter:
        await interpreter.text("1")
        before = set(psutil.Process().children(recursive=True))
        report = Recorder()
        code = "print('started', flush=True)\nopen('x', 'w').close()\nwhile True: pass"
        async with asyncio.TaskGroup() as group:
            task = group.create_task(interpreter.run(code, report=report))
            async with asyncio.timeout(30):
                await report.printed.wait()
            assert report.outputs == [("stdout", "started\n")]
            task.cancel()
        assert set(psutil.Process().children(recursive=True)) <= before
        assert interpreter.folders == []


async def test_ten_calls_at_once_do_not_mix(opened: Open, tier: str) -> None:
    async with opened(tier, concurrency=5, native={"kernels": 3}) as interpreter:
        code = "open('n', 'w').write('{0}')\nn = {0}\nprint(open('n').read())"
        for _ in range(2):
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(interpreter.text(code.format(n), session=f"s{n}")) for n in range(10)]
            for n, call in enumerate(calls):
                assert f"[stdout]\n{n}\n" in call.result()
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(interpreter.text("n", session=f"s{n}")) for n in range(10)]
        assert [call.result() for call in calls] == [f"completed\n[stdout]\n{n}\n[/stdout]" for n in range(10)]


async def test_calls_of_one_session_run_one_after_the_other(opened: Open, tier: str) -> None:
    async with opened(tier) as interpreter:
        await interpreter.text("n = 0", session="s")
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(interpreter.text("n += 1", session="s"))
        assert "[stdout]\n5\n" in await interpreter.text("n", session="s")


async def test_files_come_back_as_attachments(opened: Open, tier: str) -> None:
    code = (
        "import os\nos.mkdir('out')\nopen('out/t.csv', 'w').write('a,b')\n"
        f"open('p.png', 'wb').write({PNG!r} + b'x')\nopen('d.bin', 'wb').write(b'\\xff\\x00')\n"
        "open('v.svg', 'w').write('<svg/>')\nopen('.hidden', 'w').write('x')"
    )
    async with opened(tier) as interpreter:
        answer = await interpreter.run(code, session="s")
        names = names_of(answer)
        assert names == ["d.bin", "out/t.csv", "p.png", "v.svg"]
        assert "Files written: d.bin, out/t.csv, p.png, v.svg" in shown(answer)
        by_name = dict(zip(names, answer.attachments, strict=True))
        assert by_name["out/t.csv"].content.content.items[0].text == "a,b"
        assert by_name["p.png"].content.content.items[0].image.data == PNG + b"x"
        assert by_name["p.png"].mime_type == "image/png"
        assert by_name["v.svg"].mime_type == "image/svg+xml"
        assert by_name["d.bin"].content.url.uri == "data:application/octet-stream;base64,/wA="
        again = await interpreter.run("print(open('out/t.csv').read())", session="s")
        assert "a,b" in shown(again)
        assert not again.attachments, "a file that did not change came back again"


async def test_more_files_than_allowed_are_named_only(opened: Open, tier: str) -> None:
    async with opened(tier, attachments=2, attachment_bytes=1000) as interpreter:
        code = "for n in range(3): open(f'{n}.txt', 'w').write('x')\nopen('0big.txt', 'w').write('y' * 2000)"
        answer = await interpreter.run(code)
        assert names_of(answer) == ["0.txt", "1.txt"]
        assert "0big.txt (2000 bytes: too large to attach)" in shown(answer)
        assert "2.txt (more than 2 files)" in shown(answer)


async def test_long_output_keeps_its_ends(opened: Open, tier: str) -> None:
    async with opened(tier, output_bytes=1000) as interpreter:
        report = Recorder()
        answer = shown(await interpreter.run("print('first')\nprint('x' * 100_000)\nprint('last')", report=report))
        assert "first" in answer
        assert "last" in answer
        assert "bytes left out" in answer
        assert len(answer) < 1200
        assert sum(len(text) for _, text in report.outputs) == 1000


async def test_figures_are_saved_when_shown_and_at_the_end(opened: Open, native: str) -> None:
    pytest.importorskip("matplotlib")
    code = "import matplotlib.pyplot as plt\nimport numpy as np\nplt.plot(np.arange(5))\nplt.show()\nplt.plot([1, 2])"
    async with opened(native) as interpreter:
        for numbers in ((1, 2), (3, 4)):
            answer = await interpreter.run(code, session="s")
            names = [f"figure-{n}.png" for n in numbers]
            assert names_of(answer) == names, shown(answer)
            assert all(one.content.content.items[0].image.data.startswith(PNG) for one in answer.attachments)


async def test_old_sessions_and_sessions_too_many_are_deleted(opened: Open, tier: str) -> None:
    async with opened(tier, session_seconds=0.2) as interpreter:
        await interpreter.text("n = 1", session="s")
        await until(lambda: interpreter.folders == [])
        assert "NameError" in await interpreter.text("n", session="s")
    async with opened(tier, sessions_bytes=3_000_000) as interpreter:
        for name in ("a", "b", "c"):
            await interpreter.text("open('f', 'wb').write(b'x' * 2_000_000)", session=name)
        await until(lambda: len(interpreter.folders) == 1)
        assert "['f']" in await interpreter.text("import os\nos.listdir('.')", session="c")


async def test_a_call_during_compilation_says_so_and_shutting_down_ends_it(opened: Open, tmp_path: Path) -> None:
    async with opened("wasm", cache=tmp_path / "cache") as interpreter:
        answer = await interpreter.run("1", timeout=1.0)
        assert answer.error_code == result.UNAVAILABLE
        assert "still being compiled" in answer.error_message
    assert psutil.Process().children() == [] or all(
        "compile.py" not in " ".join(one.cmdline()) for one in psutil.Process().children()
    )
    assert list((tmp_path / "cache").rglob("*.cwasm")) == []


async def test_a_compiled_module_that_others_can_change_is_refused(
    opened: Open, cache_dir: Path, tmp_path: Path
) -> None:
    async with opened("wasm") as interpreter:
        await interpreter.text("1")
    [good] = (cache_dir / "code-interpreter").glob("*.cwasm")
    folder = tmp_path / "cache" / "code-interpreter"
    folder.mkdir(parents=True)
    (folder / good.name).write_bytes(b"anything")
    (folder / good.name).chmod(0o666)
    async with opened("wasm", cache=tmp_path / "cache") as interpreter:
        answer = await interpreter.run("1")
        assert answer.error_code == result.UNAVAILABLE
        assert "can be changed by others" in answer.error_message


@pytest.mark.parametrize(("launcher", "said"), [("/bin/false", "does not work here"), ("no-such", "apt-get install")])
async def test_a_tier_that_fails_its_probe_refuses_with_the_reason(opened: Open, launcher: str, said: str) -> None:
    async with opened("native", native={"bubblewrap": launcher}) as interpreter:
        answer = await interpreter.run("open('/tmp/escaped', 'w')")
        assert answer.error_code == result.UNAVAILABLE
        assert said in answer.error_message
        assert "tier native" in answer.error_message
        assert said in interpreter.provider._details["code interpreter"]


async def test_groups_cannot_set_what_would_be_ignored(opened: Open) -> None:
    async with opened("wasm") as interpreter:
        await interpreter.provider.check(GROUP, Access())
        wrong = type(GROUP)()
        wrong.CopyFrom(GROUP)
        wrong.args.update({"tier": "native"})
        with pytest.raises(InvalidArgumentError, match="tier") as failure:
            await interpreter.provider.check(wrong, Access())
        assert failure.value.field == "args.tier"
        wrong.CopyFrom(GROUP)
        wrong.settings.egress_hosts.append("example.org")
        with pytest.raises(InvalidArgumentError, match="egress_hosts"):
            await interpreter.provider.check(wrong, Access())


async def test_the_tool_says_what_it_has(opened: Open, tier: str) -> None:
    async with opened(tier) as interpreter:
        [tool] = await interpreter.provider.list_tools(GROUP, Access())
        assert tool.name == "code_interpreter"
        assert ("no numpy" in tool.description) == (tier == "wasm")
        assert tool.input_schema["required"] == ["code"]


async def test_kernels_beyond_the_bound_end_and_their_variables_stay(opened: Open, native: str) -> None:
    others = psutil.Process().children()  # of the fixtures of other tests
    async with opened(native, native={"kernels": 1}) as interpreter:
        await one_and_other(interpreter)
        assert len([one for one in psutil.Process().children() if one not in others]) == 1


async def one_and_other(interpreter: Interpreter) -> None:
    await interpreter.text("n = 1", session="a")
    await interpreter.text("n = 2", session="b")
    assert "[stdout]\n1\n" in await interpreter.text("n", session="a")
