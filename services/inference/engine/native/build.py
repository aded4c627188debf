"""Compile the kernels, once per instruction set, where there is a C++ compiler; run with `python -m`.

Each variant is a library of its own, so that no function compiled for one CPU can be taken for another's. Without a
compiler nothing is built, which costs speed only: the engine then runs on plain PyTorch.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parent
COMMON = ("-O3", "-std=c++20", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden",
          "-fno-math-errno", "-ffp-contract=off",  # the same rounding wherever a function is inlined
          "-fno-tree-pre", "-fno-tree-slp-vectorize",  # GCC 12 spills the accumulators with them
          "-Wall", "-Wextra", "-Wno-maybe-uninitialized")  # fmt: skip
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma")
VARIANTS: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "avx512_bf16": (frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "fma"}),
                    (*_AVX512, "-mavx512bf16")),
    "avx512_vnni": (frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "fma"}), _AVX512),
    "avx2": (frozenset({"avx2", "fma"}), ("-DSIMD_AVX2", "-mavx2", "-mfma")),
}  # fmt: skip
"""Name to the CPU's flags that it needs (as Linux writes them) and the compiler's; the fastest first."""


def library_path(variant: str) -> Path:
    """Where the variant's library is or would be; its name changes with the sources."""
    return SOURCES / f"kernels-{variant}-{_fingerprint()}.so"


def build() -> str:
    """Compile what is missing; returns one line that says what there is now."""
    machine = platform.machine()
    if machine != "x86_64":
        return f"kernels: none for {machine}; the engine runs on plain PyTorch"
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    missing = [variant for variant in VARIANTS if not library_path(variant).exists()]
    if missing and compiler is None:
        return "kernels: not built, there is no C++ compiler (g++ or clang++); the engine runs on plain PyTorch"
    for old in SOURCES.glob("kernels-*.so"):
        if old not in {library_path(variant) for variant in VARIANTS}:
            old.unlink(missing_ok=True)
    for variant in missing:
        assert compiler is not None
        scratch = library_path(variant).with_suffix(f".{os.getpid()}")
        command = [compiler, *COMMON, *VARIANTS[variant][1], str(SOURCES / "step.cpp"), "-o", str(scratch)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own sources)
        if result.returncode:
            scratch.unlink(missing_ok=True)
            first = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr[:200])
            return f"kernels: not built, {compiler} failed ({first.strip()}); the engine runs on plain PyTorch"
        scratch.replace(library_path(variant))
    return f"kernels: {', '.join(VARIANTS)}"


def _fingerprint() -> str:
    digest = hashlib.sha256(repr((COMMON, VARIANTS["avx2"][1], _AVX512)).encode())
    for source in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    sys.stdout.write(build() + "\n")
