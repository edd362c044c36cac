"""What an update costs the combiner: check, fold, write; beside a copy and a sha256 of the same bytes in
the same run.

    python benchmarks/fold.py --elements 25_000_000 --updates 5
    python benchmarks/fold.py --elements 1_000_000 --updates 30 --orders 100   # same bytes in 100 random
    orders
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from combiner.aggregation import FedAvg
from rich.console import Console
from rich.table import Table

from fedcombiner.modelstorage.formats.arrays import save_arrays
from fedcombiner.modelstorage.formats.npz import CheckedUpdate, check_update, read_spec

T = TypeVar("T")
Seconds = dict[str, list[float]]


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        directory = Path(name)
        paths = make_updates(directory, arguments)
        seconds: Seconds = {}
        references(paths[0], arguments, seconds)
        idle = reset_peak_memory()
        if arguments.orders:
            same_bytes(paths, directory, arguments.orders)
            return
        tail = fold_all(paths, directory, seconds)
        memory = (peak_memory() - idle) / arguments.elements
    report(arguments, seconds, memory, tail)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--elements", type=int, default=5_000_000)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--kind", choices=["stored", "deflated"], default="stored")
    parser.add_argument("--dtype", default="float32", help="of updates and parent")
    parser.add_argument("--spread", type=int, default=0, help="binary orders of magnitude among the values")
    parser.add_argument(
        "--orders", type=int, default=0, help="fold in so many random orders and compare the bytes"
    )
    parser.add_argument("--scratch", type=Path, default=None)
    return parser.parse_args()


def make_updates(directory: Path, arguments: argparse.Namespace) -> list[Path]:
    rng = np.random.default_rng(0)
    base = rng.standard_normal(arguments.elements, dtype=np.float32).astype(arguments.dtype)
    paths = []
    for index in range(arguments.updates):
        noise = rng.standard_normal(4096).astype(arguments.dtype)
        values = base * (1 + np.resize(noise, base.size) / 100)
        if arguments.spread:
            values = np.ldexp(values, rng.integers(-arguments.spread, 1, base.size, dtype=np.int32))
        paths.append(directory / f"update-{index}.npz")
        save_arrays(paths[-1], {"w": values}, compress=arguments.kind == "deflated")
    return paths


def references(path: Path, arguments: argparse.Namespace, seconds: Seconds) -> None:
    source = np.ones(arguments.elements, arguments.dtype)
    target = np.zeros_like(source)
    for _ in range(3):
        timed(seconds, "copy in memory", lambda: np.copyto(target, source))
        timed(seconds, "sha256", lambda: hashlib.sha256(source.data).digest())
        timed(seconds, "read the file", path.read_bytes)


def fold_all(paths: list[Path], directory: Path, seconds: Seconds) -> int:
    parent = read_spec(paths[0])
    aggregator = FedAvg(parent, directory)
    for index, path in enumerate(paths):
        update = timed(seconds, "check", partial(check_update, path, parent, directory))
        with update:
            step = "fold, first" if index == 0 else "fold"
            timed(seconds, step, partial(aggregator.fold, update, 100 + index))
    timed(seconds, "write", lambda: aggregator.write(directory / "aggregate.npz"))
    tail = aggregator.scratch_bytes
    aggregator.close()
    return tail


def same_bytes(paths: list[Path], directory: Path, orders: int) -> None:
    parent = read_spec(paths[0])
    with ExitStack() as stack:
        terms = [
            (stack.enter_context(check_update(path, parent, directory)), 100 + i)
            for i, path in enumerate(paths)
        ]
        digests = {digest(random.Random(seed).sample(terms, len(terms)), directory) for seed in range(orders)}
    Console().print(f"{orders} orders of {len(paths)} updates: {len(digests)} different aggregate(s)")
    if len(digests) != 1:
        raise SystemExit(1)


def digest(terms: Iterable[tuple[CheckedUpdate, int]], directory: Path) -> str:
    aggregator: FedAvg | None = None
    for update, num_examples in terms:
        aggregator = aggregator or FedAvg(update.parent, directory)
        aggregator.fold(update, num_examples)
    assert aggregator is not None
    aggregator.write(directory / "aggregate.npz")
    aggregator.close()
    return hashlib.sha256((directory / "aggregate.npz").read_bytes()).hexdigest()


def timed(seconds: Seconds, step: str, work: Callable[[], T]) -> T:
    started = time.perf_counter()
    result = work()
    seconds.setdefault(step, []).append(time.perf_counter() - started)
    return result


def reset_peak_memory() -> int:
    """Set the peak of resident memory to the current value, which is returned, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def report(arguments: argparse.Namespace, seconds: Seconds, memory: float, tail: int) -> None:
    nbytes = arguments.elements * np.dtype(arguments.dtype).itemsize
    copy = statistics.median(seconds["copy in memory"])
    sha = statistics.median(seconds["sha256"])
    table = Table(
        title=f"{arguments.updates} {arguments.kind} updates of {arguments.elements:,} {arguments.dtype}"
    )
    for column in ("step", "seconds, median", "MB/s", "x copy", "x sha256"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for step, values in seconds.items():
        median = statistics.median(values)
        rate = f"{nbytes / median / 1e6:,.0f}"
        table.add_row(step, f"{median:.4f}", rate, f"{median / copy:.1f}", f"{median / sha:.2f}")
    console = Console()
    console.print(table)
    console.print(
        f"peak memory above idle: {memory:.1f} bytes an element; on disk for long sums: {tail / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
