"""What `stack up` decides about traces."""

from pathlib import Path
from typing import Any

from compose.plan import make_plan
from services.runtime.config import RuntimeConfig, StackConfig, TelemetryConfig
from stack_client.home import Home


def telemetry_of(home: Path, groups: list[list[str]], **telemetry: Any) -> list[Any]:
    """The telemetry settings that each process gets."""
    runtime = RuntimeConfig(tcp=False, socket_dir=home, telemetry=TelemetryConfig(**telemetry))
    plan = make_plan(StackConfig(file="test", runtime=runtime), home=Home.choose(home), groups=groups)
    return [process.overlay["runtime"]["telemetry"] for process in plan.processes]


def test_all_processes_send_traces_where_the_telemetry_service_is_started(tmp_path: Path) -> None:
    groups = [["inference"], ["agents", "telemetry"]]
    assert telemetry_of(tmp_path, groups) == [{"traces": True}, {"traces": True}]
    assert telemetry_of(tmp_path, groups, metrics_port=9000) == [
        {"metrics_port": 9000, "traces": True},
        {"metrics_port": 9001, "traces": True},
    ]


def test_no_traces_are_sent_where_it_is_not_started_or_the_user_said_no(tmp_path: Path) -> None:
    assert telemetry_of(tmp_path, [["inference"], ["agents"]]) == [{}, {}]
    assert telemetry_of(tmp_path, [["inference"], ["telemetry"]], traces=False) == [{}, {}]
