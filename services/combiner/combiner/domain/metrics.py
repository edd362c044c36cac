"""The numbers in the answers to a validation."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction

from combiner.domain.jsontext import read_object

MAX_CHARS = 64 * 1024
MAX_NAMES = 200
MAX_NAME_CHARS = 100


def parse_metrics(json_text: str) -> dict[str, float]:
    """The finite numbers at the top of a JSON object, the first MAX_NAMES. Everything else is left out."""
    found: dict[str, float] = {}
    for name, value in (read_object(json_text, MAX_CHARS) or {}).items():
        number = _finite(value)
        if number is not None and 0 < len(name) <= MAX_NAME_CHARS and name.isprintable():
            found[name] = number
            if len(found) == MAX_NAMES:
                break
    return found


def mean_metrics(clients: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the clients that have it, by name.

    At most MAX_NAMES of them: those that most clients have. The order of the clients makes no difference.
    """
    values: defaultdict[str, list[float]] = defaultdict(list)
    for metrics in clients:
        for name, value in metrics.items():
            values[name].append(value)
    common = sorted(values, key=lambda name: (-len(values[name]), name))[:MAX_NAMES]
    return {name: _mean(values[name]) for name in sorted(common)}


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _mean(values: list[float]) -> float:
    try:
        return math.fsum(values) / len(values)
    except OverflowError:
        # The sum is no float, the mean always is.
        return float(sum(map(Fraction, values)) / len(values))
