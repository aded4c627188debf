"""The compiled kernels from Python: which variant this CPU can run, and the C layouts of `model.h`."""

import ctypes
import functools
import os
from ctypes import POINTER, Structure, c_float, c_int32, c_void_p
from pathlib import Path

from services.inference.engine.native.build import VARIANTS, library_path

CHOICE = "STACK_KERNELS"


class Shape(Structure):
    """`Shape` of model.h."""

    _fields_ = [
        *((name, c_int32) for name in ("vocab", "dim", "layers", "heads", "kv_heads", "head_dim", "ffn", "tiles")),
        ("norm_eps", c_float),
    ]


class Linear(Structure):
    """`Linear` of model.h."""

    _fields_ = [("weights", c_void_p), ("scales", c_void_p), ("minima", c_void_p), ("inputs", c_int32),
                ("columns", c_int32), ("group", c_int32), ("rotate", c_int32)]  # fmt: skip


class Layer(Structure):
    """`Layer` of model.h."""

    _fields_ = [("attention_norm", c_void_p), ("ffn_norm", c_void_p), ("qkv", Linear), ("out", Linear),
                ("gate_up", Linear), ("down", Linear)]  # fmt: skip


class Weights(Structure):
    """`Weights` of model.h."""

    _fields_ = [("embedding", c_void_p), ("norm", c_void_p), ("frequencies", c_void_p), ("layers", POINTER(Layer)),
                ("head", Linear)]  # fmt: skip


class LowRank(Structure):
    """`LowRank` of model.h."""

    _fields_ = [("a", c_void_p), ("b", c_void_p), ("rank", c_int32)]


class AdapterLayer(Structure):
    """`AdapterLayer` of model.h."""

    _fields_ = [(name, LowRank) for name in ("q", "k", "v", "out", "gate", "up", "down")]


class Step(Structure):
    """`Step` of model.h."""

    _fields_ = [("parts", c_int32)] + [
        (name, c_void_p)
        for name in ("counts", "starts", "tables", "table_starts", "ids", "wanted", "adapters", "logits")
    ]  # fmt: skip


def cpu_flags() -> frozenset[str]:
    """What the CPU can do, as Linux writes it; empty where that is not known."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


@functools.cache
def choose() -> tuple[str, str]:
    """The variant to run, or "", and the reason.

    The environment's STACK_KERNELS names another one, or `none`: for tests and for finding faults.
    """
    flags = cpu_flags()
    wanted = os.environ.get(CHOICE, "")
    if wanted == "none":
        return "", f"{CHOICE} is none"
    able = [variant for variant, (needs, _) in VARIANTS.items() if needs <= flags]
    if wanted:
        able = [variant for variant in able if variant == wanted]
    if not able:
        return "", f"{CHOICE}={wanted} does not run on this CPU" if wanted else "no kernels for this CPU"
    built = [variant for variant in able if library_path(variant).exists()]
    if not built:
        return "", "the kernels are not built: python -m services.inference.engine.native.build"
    return built[0], f"{CHOICE}={wanted}" if wanted else "the best this CPU has"


@functools.cache
def load(variant: str) -> ctypes.CDLL:
    """The library of a variant.

    Raises:
        OSError: If it cannot be loaded.
    """
    library = ctypes.CDLL(str(library_path(variant)))
    library.model_create.argtypes = [POINTER(Shape), POINTER(Weights), ctypes.c_int]
    library.model_create.restype = c_void_p
    library.model_destroy.argtypes = [c_void_p]
    library.model_destroy.restype = None
    library.model_step.argtypes = [c_void_p, POINTER(Step)]
    library.model_step.restype = ctypes.c_int
    return library
