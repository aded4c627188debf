"""The containers' files: valid for the real Compose, safe by default, and their commands really start the services."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from compose.check import BASE, COMBINATIONS, FOLDER, config
from compose.supervisor import serve_command

OURS = ("inference", "safety", "memory", "tools", "agents", "telemetry")
SCRIPTED = [{"model_id": "scripted", "provider_id": "scripted"}]
STACK = [sys.executable, "-m", "stack_client.cli"]


def resolved(*files: str, profiles: tuple[str, ...] = ()) -> dict[str, Any]:
    result = config(files or (BASE,), profiles, output="json")
    assert result.returncode == 0, result.stderr
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


@pytest.mark.parametrize(("files", "profiles"), COMBINATIONS, ids=[" ".join((*f, *p)) for f, p in COMBINATIONS])
def test_every_combination_of_files_is_valid(files: tuple[str, ...], profiles: tuple[str, ...]) -> None:
    result = config(files, profiles)
    assert result.returncode == 0, result.stderr


def test_only_the_gpu_file_reserves_devices() -> None:
    assert "devices" not in json.dumps(resolved())
    deploy = resolved(BASE, "compose.gpu.yaml")["services"]["inference"]["deploy"]
    assert deploy["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_containers_are_locked_down_and_published_on_loopback_only() -> None:
    services = resolved(profiles=("storage",))["services"]
    for name in OURS:
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]
    for service in services.values():
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["mem_limit"]
        assert service["healthcheck"]["start_interval"]
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))
    last_user = re.findall(r"^USER (\w+)", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)[-1]
    assert last_user != "root"


def test_services_start_after_those_they_need_are_healthy() -> None:
    assert resolved()["services"]["agents"]["depends_on"]["inference"]["condition"] == "service_healthy"


def test_a_container_runs_what_stack_up_runs(tmp_path: Path) -> None:
    for name in OURS:
        command = resolved()["services"][name]["command"]
        ours = serve_command([name], config=Path("c"), home=tmp_path, overlay=Path("o"), parent=1)
        assert ours[: len(STACK)] == STACK
        assert ours[len(STACK) :][:2] == command[:2] == ["serve", name]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def ports() -> dict[str, int]:
    return {name: free_port() for name in OURS}


@pytest.fixture
def as_processes(tmp_path: Path, ports: dict[str, int]) -> Iterator[dict[str, Any]]:
    """The services of the file as plain processes: the same commands, the same settings but for names and models."""
    services = resolved()["services"]
    settings = yaml.safe_load((FOLDER / "stack.yaml").read_text())
    settings["addresses"] = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    settings["runtime"] |= {"host": "127.0.0.1", "drain_grace_seconds": 0.5}
    settings["inference"]["models"] = SCRIPTED
    file = tmp_path / "stack.yaml"
    file.write_text(yaml.safe_dump(settings))
    with ExitStack() as stack:
        for name in OURS:
            command = [str(file) if part == "/etc/stack/stack.yaml" else part for part in services[name]["command"]]
            process = stack.enter_context(
                subprocess.Popen([*STACK, *command, "--home", str(tmp_path / name)], stderr=subprocess.DEVNULL)
            )
            stack.callback(process.terminate)
        yield services


def test_the_files_commands_and_health_checks_work_as_plain_processes(
    as_processes: dict[str, Any], ports: dict[str, int]
) -> None:
    for name in OURS:
        kind, *check = as_processes[name]["healthcheck"]["test"]
        assert (kind, check[0]) == ("CMD", "stack")
        address = re.sub(r"localhost:\d+", f"127.0.0.1:{ports[name]}", check[-1])
        command = [*STACK, *check[1:-1], address]
        assert any(subprocess.run(command, check=False, capture_output=True).returncode == 0 for _ in range(60)), name
    answer = subprocess.run(
        [*STACK, "complete", "ping", "--model", "scripted", "--address", f"127.0.0.1:{ports['inference']}", "--json"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert "ping" in answer.stdout


def test_a_health_check_of_nothing_fails_with_one_line() -> None:
    result = subprocess.run(
        [*STACK, "health", f"127.0.0.1:{free_port()}", "--timeout", "2"], check=False, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
