"""The SDK: what importing it costs, and what installing it brings."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import report, report_median

ROUNDS = 7
IMPORT = "import resource, {modules}; use = resource.getrusage(0); print(use.ru_utime + use.ru_stime)"


def main() -> None:
    """Measure both."""
    bare, sdk, agent = [], [], []
    for _ in range(ROUNDS):  # interleaved: the bare interpreter is what to subtract
        bare.append(_import_cpu("sys"))
        sdk.append(_import_cpu("stack_client"))
        agent.append(_import_cpu("stack_client; stack_client.Agent; stack_client.SyncStackClient"))
    report_median("python with nothing imported, CPU", bare, "s")
    report_median("python with stack_client imported, CPU", sdk, "s", note="budget 0.3")
    report_median("python with stack_client.Agent in use, CPU", agent, "s", note="budget 0.3")
    names = _installed()
    report("packages of `pip install .`, ours included", len(names), "packages", note=f"budget 15: {' '.join(names)}")


def _import_cpu(modules: str) -> float:
    first, _, rest = modules.partition(";")
    code = IMPORT.format(modules=first).replace("; use", f";{rest}; use" if rest else "; use", 1)
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def _installed() -> list[str]:
    """Packages of a fresh environment after `pip install .`, without pip and setuptools themselves."""
    root = Path(__file__).resolve().parent.parent
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        constraints = root / "compose" / "constraints.txt"
        subprocess.run(
            [*pip, "install", "--quiet", "--constraint", str(constraints), str(root)], check=True, env=environment
        )
        command = [*pip, "list", "--format=json"]
        listed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return sorted({entry["name"] for entry in json.loads(listed.stdout)} - {"pip", "setuptools"})


if __name__ == "__main__":
    main()
