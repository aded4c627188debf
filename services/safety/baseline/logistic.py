"""Logistic regression by Newton's method: a few hundred inputs need no library, and equal inputs give equal bytes."""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_STEPS = 60
_CLOSE = 1e-9


def fit(inputs: Matrix, labels: Matrix, weights: Matrix, *, penalty: float = 1.0) -> tuple[Matrix, float]:
    """Weights (D,) and offset of the most likely logistic model under a Gaussian prior; the offset is free.

    Minimises the weighted sum of log losses plus `penalty / 2` times the squared norm of the weights.

    Args:
        inputs: (N, D).
        labels: 0 or 1, (N,).
        weights: Of the rows, (N,).
        penalty: Strength of the prior.
    """
    x = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1).astype(np.float64)
    prior = np.full(x.shape[1], penalty)
    prior[-1] = 1e-9
    beta = np.zeros(x.shape[1])
    loss = _loss(x, labels, weights, prior, beta)
    for _ in range(_STEPS):
        p = sigmoid(x @ beta)
        gradient = x.T @ (weights * (p - labels)) + prior * beta
        hessian = (x * (weights * np.maximum(p * (1 - p), 1e-9))[:, None]).T @ x + np.diag(prior)
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        while (new := _loss(x, labels, weights, prior, beta - scale * step)) > loss and scale > _CLOSE:
            scale /= 2
        beta = beta - scale * step
        if loss - new < _CLOSE * max(1.0, abs(loss)):
            break
        loss = new
    return beta[:-1], float(beta[-1])


def sigmoid(logits: Matrix) -> Matrix:
    """1 / (1 + exp(-z)), without overflow."""
    found: Matrix = 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64)))
    return found


def _loss(x: Matrix, labels: Matrix, weights: Matrix, prior: Matrix, beta: Matrix) -> float:
    z = x @ beta
    return float(np.sum(weights * (np.logaddexp(0, z) - labels * z)) + 0.5 * np.sum(prior * beta * beta))
