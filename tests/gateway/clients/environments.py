"""Environments for public clients: each has packages that conflict with ours, or with another client's.

`python -m tests.gateway.clients.environments` (`make clients`) installs them all; the tests use what is there.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

CACHE = Path.home() / ".cache" / "llama-stack-mesh" / "clients"
PROGRAMS = Path(__file__).parent / "programs"
INSTALL_SECONDS = 240.0
MAKERS = 3
"""Environments that are installed at once."""
RUN_SECONDS = 120.0
_PYTEST = ("pytest==9.2.0", "pytest-asyncio==1.5.0")
_LLAMA_STACK = (
    "anyio", "click", "distro", "fire", "httpx", "pandas", "prompt-toolkit", "pyaml", "pydantic", "requests", "rich",
    "sniffio", "termcolor", "tqdm", "typing-extensions",
)  # fmt: skip


class NoEnvironmentError(Exception):
    """The packages cannot be had here."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Environment:
    """The packages of one client."""

    name: str
    """For reports."""
    packages: Sequence[str] = ()
    """What pip installs with its dependencies."""
    newer_python: Sequence[str] = ()
    """What declares a newer Python than ours and yet runs: it is installed without dependencies."""
    node_packages: Mapping[str, str] = field(default_factory=dict)
    """What npm installs, with versions; an environment is of pip or of npm."""

    @property
    def folder(self) -> Path:
        """Where its packages are.

        Raises:
            NoEnvironmentError: They are not installed; tests never do that, for they stay off the network.
        """
        if not self._place.exists():
            raise NoEnvironmentError(f"{self.name} is not installed; `make clients` does it")
        return self._place

    @property
    def _place(self) -> Path:
        wanted = json.dumps([sys.version_info[:2], *self.packages, *self.newer_python, dict(self.node_packages)])
        return CACHE / hashlib.sha256(wanted.encode()).hexdigest()[:16]

    def make(self) -> None:
        """Install the packages, once, whoever comes first.

        Raises:
            NoEnvironmentError: The packages cannot be had.
        """
        if self._place.exists():
            return
        CACHE.mkdir(parents=True, exist_ok=True)
        # Made beside its place and moved there, so that a folder that exists is whole.
        draft = Path(tempfile.mkdtemp(prefix="draft-", dir=CACHE))
        try:
            self._install(draft)
            draft.rename(self._place)
        except OSError:
            if not self._place.exists():  # else another process was first
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _install(self, folder: Path) -> None:
        if self.node_packages:
            if not (shutil.which("node") and shutil.which("npm")):
                raise NoEnvironmentError("node and npm are not installed")
            (folder / "package.json").write_text(json.dumps({"type": "module", "dependencies": self.node_packages}))
            _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"], cwd=folder)
            return
        # A target folder, not a virtual environment: it can be moved, and takes no copy of pip.
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]
        for packages, more in ((self.newer_python, ["--no-deps", "--ignore-requires-python"]), (self.packages, [])):
            if packages:
                _run([*pip, str(folder), *more, *packages], cwd=folder)

    def run(self, program: str, *, url: str) -> dict[str, str]:
        """Run the tests of a program against a gateway; by test, what went wrong, or an empty text.

        Args:
            program: File in `programs`.
            url: Where the gateway serves.

        Raises:
            NoEnvironmentError: The packages cannot be installed.
        """
        folder = self.folder
        command = [
            sys.executable, "-S", "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(PROGRAMS), "-p", "report",
            "-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin", "--tb=short", "--noconftest", "-o",
            "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session", str(PROGRAMS / program),
        ]  # fmt: skip
        if self.node_packages:
            shutil.copy(PROGRAMS / program, folder)
            command = ["node", "--test", "--test-reporter", str(PROGRAMS / "report.mjs"), program]
        with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as report:
            done = subprocess.run(
                command, cwd=folder, env={**self._variables(url), "REPORT": report.name},
                capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
            )  # fmt: skip
            outcomes = [json.loads(line) for line in report]
        if not outcomes:
            raise RuntimeError(f"{program} ran no test: {done.stdout[-4000:]}{done.stderr[-4000:]}")
        return dict(outcomes)

    def module(
        self, name: str, *arguments: str, url: str, cwd: Path, seconds: float = RUN_SECONDS
    ) -> "subprocess.CompletedProcess[str]":
        """Run a module of the packages to its end.

        Args:
            name: What comes after `python -m`.
            arguments: Of its command line.
            url: Where the gateway serves.
            cwd: Folder that it may write to.
            seconds: How long it may take.

        Raises:
            NoEnvironmentError: The packages cannot be installed.
        """
        command = [sys.executable, "-S", "-m", name, *arguments]
        return subprocess.run(
            command, cwd=cwd, env=self._variables(url), capture_output=True, text=True, timeout=seconds, check=False
        )

    @contextlib.contextmanager
    def running(self, program: str, *, url: str) -> Iterator["subprocess.Popen[str]"]:
        """A program that has no tests, with its input and output in pipes; it is killed at the end of the block.

        Args:
            program: File in `programs`.
            url: Where the gateway serves.

        Raises:
            NoEnvironmentError: The packages cannot be installed.
        """
        command = [sys.executable, "-S", str(PROGRAMS / program)]
        folder, pipe = self.folder, subprocess.PIPE
        with subprocess.Popen(
            command, cwd=folder, env=self._variables(url), stdin=pipe, stdout=pipe, stderr=pipe, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def _variables(self, url: str) -> dict[str, str]:
        """The environment of a program: ours without our packages."""
        keep = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
        paths = os.pathsep.join([str(self.folder), str(PROGRAMS)])
        return {**keep, "GATEWAY_URL": url, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def _run(command: Sequence[str], *, cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NoEnvironmentError(f"{command[0]} took longer than {INSTALL_SECONDS:.0f} s") from None
    if done.returncode:
        raise NoEnvironmentError(f"is the registry reachable? {done.stderr.strip().splitlines()[-1:]}")


OPENAI = Environment(name="openai", packages=("openai==3.54.0", "langchain-openai==1.7.3", *_PYTEST))
LLAMA_STACK_0_2 = Environment(
    name="llama-stack-client 0.2", newer_python=("llama-stack-client==0.2.20",), packages=(*_LLAMA_STACK, *_PYTEST)
)
LLAMA_STACK_0_7 = Environment(
    name="llama-stack-client 0.7", newer_python=("llama-stack-client==0.7.5",), packages=(*_LLAMA_STACK, *_PYTEST)
)
OGX = Environment(
    name="ogx-client",
    newer_python=("ogx-client==1.5.0",),
    packages=("python-dateutil", "httpx", "pydantic", "typing-extensions", "requests", "fire", "rich", "termcolor",
              *_PYTEST),
)  # fmt: skip
NODE = Environment(name="openai for Node", node_packages={"openai": "6.49.0"})
SCHEMATHESIS = Environment(name="schemathesis", packages=("schemathesis==4.32.5",))
ENVIRONMENTS = (OPENAI, LLAMA_STACK_0_2, OGX, LLAMA_STACK_0_7, NODE, SCHEMATHESIS)
"""All of them, in the order in which their tests run."""


def main() -> int:
    """Install all environments, a few at once."""
    with ThreadPoolExecutor(MAKERS) as pool:
        jobs = {environment.name: pool.submit(environment.make) for environment in ENVIRONMENTS}
    failed = 0
    for name, job in jobs.items():
        error = job.exception()
        failed += error is not None
        print(f"{name}: {error or 'installed'}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
