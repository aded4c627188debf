"""The `stack` command by itself."""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = "import sys; sys.modules[{missing!r}] = None; from stack_client.cli import main; sys.exit(main(sys.argv[1:]))"


def run(*arguments: str, missing: str = "nothing") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT.format(missing=missing), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", [("serve", "agents"), ("up",)])
def test_without_the_server_packages_the_pip_command_is_named(command: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*command, "--home", str(tmp_path), missing="yaml")
    assert done.returncode == 1
    assert 'yaml is missing): pip install "llama-stack-mesh[server' in done.stderr
    assert "Traceback" not in done.stderr


def test_usage_errors_end_with_2() -> None:
    assert run("nosuch").returncode == 2
    assert run().returncode == 2


@pytest.mark.parametrize("command", ["status", "down"])
def test_without_a_running_stack_the_way_to_start_one_is_named(command: str, tmp_path: Path) -> None:
    done = run(command, "--home", str(tmp_path))
    assert (done.returncode, done.stderr) == (
        1,
        f"error: no stack is running in {tmp_path}; start one with `stack up`\n",
    )


def test_the_command_line_needs_none_of_the_server_packages() -> None:
    code = (
        "import sys; from stack_client.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "server = {'services', 'compose', 'psutil', 'yaml', 'prometheus_client'}\n"
        "print(*sorted(server & {*sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
