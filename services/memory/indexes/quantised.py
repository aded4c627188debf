"""Vectors as bytes, for scans: N rows, D dimensions.

A vector v of length 1 is kept as q = round(v / s), s = max|v| / 127, so v = s q + e. For a query u = t p + f the exact
product differs from s t (q . p) by e.u + s q.f, at most |e| + (1 + |e|) |f| by Cauchy and Schwarz. The rounding errors
of many dimensions point nowhere in particular, so the product of one with another vector is |e| / sqrt(D) in the mean
square: `slack` takes six times that, and never more than what is certain.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numkong
import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Bytes: TypeAlias = npt.NDArray[np.int8]
LEVELS = 127
SIGMAS = 6.0


@dataclass(frozen=True, slots=True)
class Quantised:
    """Vectors as bytes."""

    q_ND: Bytes
    scale_N: Floats
    error_N: Floats
    """Length of what rounding took away."""


def quantise(vectors_ND: Floats) -> Quantised:
    """Vectors of length 1 as bytes."""
    top_N = np.abs(vectors_ND).max(axis=1, initial=0)
    scale_N = np.where(top_N > 0, top_N / LEVELS, 1).astype(np.float32)
    q_ND = np.rint(vectors_ND / scale_N[:, None]).astype(np.int8)
    error_N = np.linalg.norm(vectors_ND - q_ND * scale_N[:, None], axis=1).astype(np.float32)
    return Quantised(q_ND, scale_N, error_N)


def products(query: Quantised, q_ND: Bytes, scale_N: Floats) -> Floats:
    """Approximate cosines of one query with N rows."""
    if not len(q_ND):
        return np.zeros(0, np.float32)
    dots_1N = np.asarray(numkong.cdist(query.q_ND, q_ND, metric="dot"))
    result: Floats = dots_1N.reshape(-1).astype(np.float32) * (scale_N * query.scale_N[0])
    return result


def slack(query: Quantised, largest_error: float) -> float:
    """How much greater an exact cosine may be than the approximate one."""
    certain = largest_error + (1 + largest_error) * float(query.error_N[0])
    return certain * min(1.0, SIGMAS / float(np.sqrt(query.q_ND.shape[1])))
