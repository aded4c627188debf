"""The process that compiles: `compile.py PARENT PATH SOURCE TARGET`; the target appears whole or not at all."""

import os
import sys

sys.path[:] = sys.argv[2].split(os.pathsep)

from pathlib import Path  # noqa: E402

from services.runtime.parents import die_with_parent  # noqa: E402
from services.tools.interpreter.wasm import engine  # noqa: E402


def main(source: str, target: str) -> None:
    """Compile a module into a file."""
    import wasmtime  # noqa: PLC0415 (after the parent is watched)

    data = wasmtime.Module.from_file(engine.make(), source).serialize()
    new = Path(f"{target}.{os.getpid()}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), signal_number=9)
    os.nice(10)  # calls of the service go first
    main(sys.argv[3], sys.argv[4])
