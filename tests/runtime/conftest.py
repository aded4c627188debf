"""The echo service for every test here."""

from pathlib import Path

import pytest

from tests.runtime.echo import Host, hosts


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """`async with host(runtime settings) as running`."""
    return hosts(tmp_path)
