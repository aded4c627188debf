"""What the machine offers, resolved once and logged with its reason; without importing torch."""

import os
from pathlib import Path


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, bounded by the cgroup's quota where there is one."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def choose_device(wanted: str) -> tuple[str, str]:
    """The device for `wanted` and the reason."""
    if wanted != "auto":
        return wanted, "configured"
    if Path("/dev/nvidiactl").exists():
        return "cuda", "an NVIDIA driver is loaded"
    return "cpu", "no GPU"


def choose_dtype(wanted: str, *, device: str) -> tuple[str, str]:
    """The arithmetic for `wanted` on `device` and the reason."""
    if wanted != "auto":
        return wanted, "configured"
    if device != "cpu":
        return "bfloat16", "GPU"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32", "unknown CPU"
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        return "bfloat16", "the CPU multiplies bf16"
    return "float32", "the CPU has no bf16 instructions"
