"""`validate.py MODEL METRICS`: what the client finds at its own place in the model.

The metrics are written here, not by FEDn's `save_metrics`, which cannot write in 0.25.
"""

import json
import os
import sys

import numpy as np


def main(model, metrics):
    index = int(os.environ["INTEROP_INDEX"])
    with open(metrics, "w") as file:
        json.dump({"index": index, "share": float(np.load(model)["0"][index])}, file)


if __name__ == "__main__":
    main(*sys.argv[1:3])
