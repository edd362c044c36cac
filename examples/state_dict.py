"""A client with its own data and a model as a state dict: an ordered dict of named arrays, as PyTorch has it.

    python examples/state_dict.py seed seed.npz     # a first model, for `combiner model put seed.npz`
    python examples/state_dict.py join alice localhost:12080

With PyTorch the two conversions are
    {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fedcombiner.client import FederatedClient
from fedcombiner.client.arrays import Arrays, write_arrays

FEATURES, EPOCHS, RATE = 4, 20, 0.1
TRUTH = np.array([1.0, -2.0, 0.5, 3.0], np.float32)


def seed() -> Arrays:
    return {"linear.weight": np.zeros(FEATURES, np.float32), "linear.bias": np.zeros(1, np.float32)}


def own_data(name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Put your own data here; it never leaves this process."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = rng.standard_normal((100, FEATURES)).astype(np.float32)
    return x, x @ TRUTH + 1 + rng.normal(scale=0.1, size=100).astype(np.float32)


def make_client(name: str, address: str) -> FederatedClient:
    x, y = own_data(name)

    def error(model: Arrays) -> np.ndarray[Any, Any]:
        return np.asarray(x @ model["linear.weight"] + model["linear.bias"] - y)

    def train(model: Arrays, config: Any) -> tuple[Arrays, int, dict[str, float]]:
        for _ in range(EPOCHS):
            residual = error(model)
            model["linear.weight"] -= RATE * (x.T @ residual) / len(y)
            model["linear.bias"] -= RATE * residual.mean()
        return model, len(y), validate(model, config)

    def validate(model: Arrays, config: Any) -> dict[str, float]:
        return {"mse": float((error(model) ** 2).mean())}

    return FederatedClient(name, train=train, validate=validate, address=address)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["seed", file]:
            write_arrays(Path(file), seed())
        case ["join", name, address]:
            asyncio.run(make_client(name, address).run())
        case _:
            sys.exit(__doc__)
