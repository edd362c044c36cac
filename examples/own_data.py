"""A client with its own data, in files that stay where they are: an .npz with arrays `x` and `y`.

    python examples/own_data.py alice alice.npz localhost:12080

Fits y = x·w + b by gradient descent. The model has the arrays `w`, of as many numbers as `x` has columns, and
`b`, of one; write the first with numpy.savez("seed.npz", w=..., b=...) and put it by `combiner model put`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fedcombiner.client import FederatedClient
from fedcombiner.client.arrays import Arrays, read_arrays


def make_client(name: str, file: Path, address: str) -> FederatedClient:
    data = read_arrays(file)
    x, y = data["x"], data["y"]

    def residual(model: Arrays) -> np.ndarray[Any, Any]:
        return np.asarray(x @ model["w"] + model["b"] - y)

    def train(model: Arrays, config: Any) -> tuple[Arrays, int, dict[str, float]]:
        rate = float(config.get("rate", 0.1))  # `combiner session start --set rate=0.05`
        for _ in range(20):
            error = residual(model)
            model = {"w": model["w"] - rate * (x.T @ error) / len(y), "b": model["b"] - rate * error.mean()}
        return model, len(y), validate(model, config)

    def validate(model: Arrays, config: Any) -> dict[str, float]:
        return {"mse": float((residual(model) ** 2).mean())}

    return FederatedClient(name, train=train, validate=validate, address=address)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    asyncio.run(make_client(sys.argv[1], Path(sys.argv[2]), sys.argv[3]).run())
