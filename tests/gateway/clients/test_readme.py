"""The program of OpenAI's client that the README shows."""

import re
import subprocess
import sys
from collections.abc import Callable

from stack_client import SyncStackClient
from tests.gateway.clients.environments import OPENAI, Environment
from tests.stacks import ROOT, StackProcess

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_program_of_the_readme_prints_an_answer(
    gateway_stack: StackProcess, made: Callable[[Environment], Environment]
) -> None:
    [block] = [text for text in BLOCKS if "from openai" in text]
    with SyncStackClient(gateway_stack.addresses) as client:
        client.models.register("smollm2-135m", provider_id="scripted")
        client.models.wait_ready("smollm2-135m")
    program = block.replace("http://127.0.0.1:8321", gateway_stack.url)
    variables = {"PYTHONPATH": str(made(OPENAI).folder), "PATH": ""}
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
