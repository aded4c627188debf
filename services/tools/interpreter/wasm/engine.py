"""How modules are compiled and run. Whoever changes it gets modules compiled anew: the text of it is in their key."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import wasmtime

ENDED, FUEL, TRAPPED, DISK, UNSAFE = 0, 80, 81, 82, 83
"""Exit statuses of the process that runs code: by itself, out of fuel, a fault of the module such as a full stack, too
many files, no sandbox."""
STACK_BYTES = 3 << 19
"""Stack of the module; wasmtime allows less than 2 MiB, Python needs more than its default of 0.5."""
SETTINGS = f"fuel=1 stack={STACK_BYTES}"


def make() -> "wasmtime.Engine":
    """An engine; the same in the process that compiles and in those that run."""
    import wasmtime  # noqa: PLC0415 (30 ms)

    config = wasmtime.Config()
    config.consume_fuel = True
    config.max_wasm_stack = STACK_BYTES
    # Threads of the compiler would be in the way of limits on processes.
    config.parallel_compilation = False
    return wasmtime.Engine(config)
