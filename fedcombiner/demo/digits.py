"""The handwritten digits that scikit-learn ships, shared out unevenly, and a small network in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Parameters = dict[str, Array]

PIXELS, HIDDEN, CLASSES = 64, 64, 10
HELD_OUT = 360
# The smaller, the more a client sees of a few digits only (Dirichlet split: Hsu et al., 2019).
EVENNESS = 0.5
EPOCHS, BATCH, RATE, MOMENTUM = 5, 16, 0.05, 0.9


@dataclass(frozen=True)
class Data:
    """Images of shape (n, 64), values 0 to 1, and their digits of shape (n,)."""

    images: Array
    digits: Array

    def take(self, rows: Array) -> Data:
        return Data(self.images[rows], self.digits[rows])


def load(seed: int) -> tuple[Data, Data]:
    """The part to train on, and a part of 360 images held out of all training."""
    from sklearn.datasets import load_digits  # only the demo needs it, and it takes a second to import

    digits = load_digits()
    every = Data((digits.data / 16.0).astype(np.float32), digits.target.astype(np.int64))
    order = np.random.default_rng(seed).permutation(len(every.digits))
    return every.take(order[HELD_OUT:]), every.take(order[:HELD_OUT])


def split(data: Data, clients: int, seed: int) -> list[Data]:
    """Unevenly by label: client i gets a share of each digit drawn from a Dirichlet distribution.

    Every client has at least one image of its own.
    """
    rng = np.random.default_rng(seed)
    rows: list[list[int]] = [[] for _ in range(clients)]
    for digit in range(CLASSES):
        mine = rng.permutation(np.flatnonzero(data.digits == digit))
        ends = (np.cumsum(rng.dirichlet([EVENNESS] * clients))[:-1] * len(mine)).astype(int)
        for client, part in enumerate(np.split(mine, ends)):
            rows[client].extend(int(row) for row in part)
    for empty in (own for own in rows if not own):
        empty.append(max(rows, key=len).pop())
    return [data.take(np.array(own)) for own in rows]


def seed_model(seed: int) -> Parameters:
    """He initialisation of a network 64-64-10."""
    rng = np.random.default_rng(seed)
    return {
        "hidden.weight": _weights(rng, PIXELS, HIDDEN),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "out.weight": _weights(rng, HIDDEN, CLASSES),
        "out.bias": np.zeros(CLASSES, np.float32),
    }


def _weights(rng: np.random.Generator, inputs: int, outputs: int) -> Array:
    return np.asarray(rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs), np.float32)


def train(model: Mapping[str, Array], data: Data, seed: int) -> Parameters:
    """Minibatch gradient descent with momentum on softmax cross-entropy."""
    rng = np.random.default_rng(seed)
    parameters = {name: np.array(value, np.float32) for name, value in model.items()}
    speed = {name: np.zeros_like(value) for name, value in parameters.items()}
    for _ in range(EPOCHS):
        order = rng.permutation(len(data.digits))
        for start in range(0, len(order), BATCH):
            _step(parameters, speed, data.take(order[start : start + BATCH]))
    return parameters


def _step(parameters: Parameters, speed: Parameters, batch: Data) -> None:
    hidden = np.maximum(batch.images @ parameters["hidden.weight"] + parameters["hidden.bias"], 0)
    error = _softmax(hidden @ parameters["out.weight"] + parameters["out.bias"])
    error[np.arange(len(error)), batch.digits] -= 1
    error /= len(error)
    back = (error @ parameters["out.weight"].T) * (hidden > 0)
    gradients = {
        "hidden.weight": batch.images.T @ back,
        "hidden.bias": back.sum(axis=0),
        "out.weight": hidden.T @ error,
        "out.bias": error.sum(axis=0),
    }
    for name, gradient in gradients.items():
        speed[name] = MOMENTUM * speed[name] - RATE * gradient
        parameters[name] += speed[name]


def _softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def evaluate(model: Mapping[str, Array], data: Data) -> dict[str, float]:
    """Mean cross-entropy `loss` and `accuracy` (0 to 1)."""
    hidden = np.maximum(data.images @ model["hidden.weight"] + model["hidden.bias"], 0)
    chances = _softmax(hidden @ model["out.weight"] + model["out.bias"])
    right = chances[np.arange(len(chances)), data.digits]
    return {
        "loss": float(-np.log(np.maximum(right, 1e-12)).mean()),
        "accuracy": float((chances.argmax(axis=1) == data.digits).mean()),
    }
