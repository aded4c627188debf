"""A stack of its own for a benchmark."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import STACK
from stack_client import SyncStackClient, addresses
from stack_client.home import Home

EMBEDDING_MODEL = "all-minilm-l6-v2"


@contextmanager
def running(**sections: Any) -> Iterator[SyncStackClient]:  # noqa: ANN401 (configuration)
    """`stack up` in a new home until the block ends, its embedding model ready."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"STACK_HOME": folder}
        config = Path(folder) / "stack.yaml"
        config.write_text(yaml.safe_dump({"runtime": {"log_level": "WARNING"}, **sections}))
        command = [*STACK, "up", "--detach", "--config", str(config)]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        try:
            with SyncStackClient(addresses.running(Home.choose(Path(folder)))) as client:
                client.models.wait_ready(EMBEDDING_MODEL, timeout=300)
                yield client
        finally:
            subprocess.run([*STACK, "down"], check=True, env=environment, capture_output=True)
