"""`stack up` and its companions, with tiny services in real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from stack_client.home import Home

ECHO = "tests.runtime.echo:build"
SERVICES = [f"one={ECHO}", f"two={ECHO},three={ECHO}"]
BOUND = 60.0


def stack(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stack_client.cli", *arguments, "--home", str(home)],
        capture_output=True,
        text=True,
        timeout=BOUND * 2,
        check=False,
    )


def until(condition: Callable[[], Any]) -> Any:
    """The condition's value once it is true; fails when that takes unreasonably long."""
    end = time.monotonic() + BOUND
    while not (value := condition()):
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.02)
    return value


class Stack:
    """A stack in the foreground, as a person starts it."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.home = Home(path=home)
        command = [sys.executable, "-m", "stack_client.cli", "up", "--home", str(home), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines: list[str] = []

    def read_until(self, text: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if text in line:
                return line.rstrip()
        raise AssertionError(f"{text!r} was not printed: {self.lines}")

    def children(self) -> dict[str, psutil.Process]:
        record = self.home.read_record()
        assert record is not None
        return {name: psutil.Process(item.pid) for name, item in record.processes.items()}

    def rest(self) -> str:
        return self.process.communicate(timeout=BOUND)[0]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "home"
    yield path
    pid = Home(path=path).running_pid()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def running(home: Path) -> Iterator[Stack]:
    made = Stack(home, "--services", *SERVICES)
    made.read_until("all services are ready")
    yield made
    if made.process.poll() is None:
        made.process.send_signal(signal.SIGTERM)
    made.rest()


def test_up_shows_readiness_and_status_shows_every_service(running: Stack, home: Path) -> None:
    assert [line for line in running.lines if line.split() == ["two", "ready"]]
    shown = stack("status", "--json", home=home)
    assert shown.returncode == 0, shown.stderr
    answer = json.loads(shown.stdout)
    assert answer["pid"] == running.process.pid
    services = {item["service"]: item for item in answer["services"]}
    assert {name: item["state"] for name, item in services.items()} == dict.fromkeys(("one", "two", "three"), "ready")
    assert services["two"]["pid"] == services["three"]["pid"] != services["one"]["pid"]
    addresses = [address for item in services.values() for address in item["addresses"]]
    assert len(set(addresses)) == 6
    assert all(address.startswith(("unix:", "127.0.0.1:")) for address in addresses)
    assert (home / "run").stat().st_mode & 0o777 == 0o700
    plain = stack("status", home=home)
    assert [line.split()[:2] for line in plain.stdout.splitlines()] == [
        ["one", "ready"],
        ["three", "ready"],
        ["two", "ready"],
    ]


def test_up_twice_names_the_running_one(running: Stack, home: Path) -> None:
    for extra in ((), ("--detach",)):
        second = stack("up", "--services", SERVICES[0], *extra, home=home)
        assert second.returncode == 1
        assert f"already running in {home} (pid {running.process.pid})" in second.stderr


def test_down_stops_everything(running: Stack, home: Path) -> None:
    children = running.children()
    ended = stack("down", home=home)
    assert (ended.returncode, ended.stdout.strip()) == (0, f"stopped (pid {running.process.pid})")
    assert "stopped" in running.rest()
    assert not any(child.is_running() for child in children.values())
    assert not running.home.record_path.exists()
    again = stack("status", home=home)
    assert again.returncode == 1
    assert "no stack is running" in again.stderr


def test_ctrl_c_leaves_no_process(running: Stack) -> None:
    children = running.children()
    running.process.send_signal(signal.SIGINT)
    running.rest()
    assert running.process.returncode == 0
    assert not any(child.is_running() for child in children.values())


def test_a_second_ctrl_c_cuts_off_calls_in_flight(running: Stack) -> None:
    record = running.home.read_record()
    assert record is not None
    channel = grpc.insecure_channel(record.services["one"].addresses[0])
    call = channel.unary_unary(
        "/test.Echo/Unary",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=StringValue.FromString,
    )
    assert call(StringValue(value="up")).value == "up"
    stuck: Any = call.future(StringValue(value="forever"))
    draining = call.future(StringValue(value="draining"))
    assert call(StringValue(value="both have arrived")).value
    running.process.send_signal(signal.SIGINT)
    assert draining.result(BOUND).value == "draining"
    running.process.send_signal(signal.SIGINT)
    assert stuck.exception(BOUND).code() is grpc.StatusCode.UNAVAILABLE
    running.rest()
    assert running.process.returncode == 0
    channel.close()


def test_a_killed_child_is_started_again(running: Stack, home: Path) -> None:
    before = running.children()
    before["one"].kill()
    said = running.read_until("died")
    assert "killed by SIGKILL; starting again in 0.5 s" in said
    until(lambda: (record := running.home.read_record()) and record.processes["one"].pid != before["one"].pid)
    until(lambda: stack("status", home=home).returncode == 0)
    assert running.children()["services"].pid == before["services"].pid


def test_children_of_a_killed_supervisor_end_and_the_next_up_works(running: Stack, home: Path) -> None:
    children = running.children()
    running.process.kill()
    running.process.wait(BOUND)
    assert "no stack is running" in stack("status", home=home).stderr
    up = stack("up", "--detach", "--services", *SERVICES, home=home)
    assert up.returncode == 0, up.stderr
    assert not any(child.is_running() for child in children.values())
    assert stack("status", home=home).returncode == 0
    assert stack("down", home=home).returncode == 0


def test_up_detached_returns_when_ready_and_down_ends_it(home: Path) -> None:
    up = stack("up", "--detach", "--services", *SERVICES, home=home)
    assert up.returncode == 0, up.stderr
    assert "all services are ready" in up.stdout
    assert stack("status", home=home).returncode == 0
    assert json.loads(stack("down", "--json", home=home).stdout)["killed"] is False


def test_logs_are_found_by_service_and_by_process(running: Stack, home: Path) -> None:
    for name in ("two", "services"):
        shown = stack("logs", name, home=home)
        assert "service listens" in shown.stdout
        assert "service=three" in shown.stdout
    assert {line.split()[0] for line in stack("logs", home=home).stdout.splitlines()} == {"one", "services"}
    missing = stack("logs", "nosuch", home=home)
    assert missing.returncode == 1
    assert "there are: one, services" in missing.stderr


def test_a_service_that_cannot_start_ends_up_with_its_reason(home: Path) -> None:
    up = stack("up", "--services", "nosuch", f"one={ECHO}", home=home)
    assert up.returncode == 1
    assert 'nosuch cannot start: no service "nosuch"' in up.stderr
    assert "Traceback" not in up.stderr
    detached = stack("up", "--detach", "--services", "nosuch", home=home)
    assert 'nosuch cannot start: no service "nosuch"' in detached.stderr


def test_a_wrong_configuration_names_file_and_key(home: Path, tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("runtime: {hosst: x}")
    up = stack("up", "--config", str(config), "--services", f"one={ECHO}", home=home)
    assert up.returncode == 1
    assert f'error: {config}: runtime.hosst: unknown key; did you mean "host"?' in up.stderr


def test_two_stacks_in_two_homes_share_no_port(tmp_path: Path) -> None:
    other = tmp_path / "other"
    # Both would take the default port of a service called inference.
    first = Stack(tmp_path / "a", "--services", f"inference={ECHO}")
    first.read_until("all services are ready")
    second = Stack(other, "--services", f"inference={ECHO}")
    second.read_until("all services are ready")
    ports = {
        item["addresses"][1]
        for where in (tmp_path / "a", other)
        for item in json.loads(stack("status", "--json", home=where).stdout)["services"]
    }
    assert len(ports) == 2
    for made in (first, second):
        made.process.send_signal(signal.SIGTERM)
        made.rest()


def test_a_home_with_a_long_path_gets_short_sockets(tmp_path: Path) -> None:
    made = Stack(tmp_path / ("long" * 30), "--services", f"one={ECHO}")
    made.read_until("all services are ready")
    record = made.home.read_record()
    assert record is not None
    path = Path(record.services["one"].addresses[0].removeprefix("unix:"))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert len(str(path)) <= 107
    made.process.send_signal(signal.SIGTERM)
    made.rest()
