"""Adds a one at the client's place, and numbers of its own: the aggregate shows who is in it.

`train.py MODEL UPDATE`, as FEDn calls it in every generation. What goes wrong is told by files: see
`tests/interop/control.py`.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np


def main(model, update):
    name, index = os.environ["INTEROP_NAME"], int(os.environ["INTEROP_INDEX"])
    control = Path(os.environ["INTEROP_CONTROL"])
    say(control, name, "training")
    parent = os.getppid()
    while (control / "hold").exists():
        if os.getppid() != parent:
            sys.exit("the client is gone")
        time.sleep(0.02)
    mode = control / f"{name}.mode"
    mode = mode.read_text() if mode.exists() else "good"
    if mode == "fails":
        sys.exit("this training was told to fail")
    with open(update, "wb") as file:
        if mode != "empty":
            np.savez_compressed(file, **trained(np.load(model), index))
    with open(update + "-metadata", "w") as file:
        json.dump({"num_examples": 10 * index + 3}, file)
    say(control, name, "trained")


def trained(model, index):
    who = model["0"].copy()
    who[index] += 1
    return {"0": who, "1": np.random.default_rng(index).standard_normal(len(model["1"]), np.float32)}


def say(control, name, word):
    with open(control / f"{name}.said", "a") as file:
        file.write(word + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
