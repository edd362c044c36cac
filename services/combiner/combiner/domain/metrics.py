"""The numbers in the answers to a validation."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import islice

from combiner.domain.jsontext import read_object

MAX_CHARS = 64 * 1024
MAX_NAMES = 200
MAX_NAME_CHARS = 100
MAX_DISTINCT = 10_000  # names in one validation
MAX_CLIENT_VALUES = 20_000  # of all clients of one validation, beside the means


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
    values: dict[str, array[float]] = {}
    for metrics in clients:
        _collect(values, metrics)
    return _means(values)


class Figures:
    """Figures that the clients of one validation answered: the means, and each client's own.

    Bounded whatever they answer: values of MAX_DISTINCT names, the first ones, count in the means, and of
    each client's own figures the first are kept, MAX_CLIENT_VALUES shared among all. Clients are to be added
    by name, so that the same answers always give the same figures.
    """

    def __init__(self, clients: int) -> None:
        self._most = max(1, MAX_CLIENT_VALUES // max(1, clients))
        self._values: dict[str, array[float]] = {}
        self.clients: dict[str, dict[str, float]] = {}

    def add(self, answers: Mapping[str, str]) -> None:
        """JSON texts by client. Takes milliseconds for a large one, so call it in a thread."""
        for client, text in answers.items():
            metrics = parse_metrics(text)
            _collect(self._values, metrics)
            own = islice(metrics.items(), self._most)
            self.clients[client] = {sys.intern(name): value for name, value in own}

    def means(self) -> dict[str, float]:
        """As `mean_metrics` has them."""
        return _means(self._values)


def _collect(values: dict[str, array[float]], metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        if name not in values and len(values) < MAX_DISTINCT:
            values[name] = array("d")
        if name in values:
            values[name].append(value)


def _means(values: Mapping[str, array[float]]) -> dict[str, float]:
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


def _mean(values: Sequence[float]) -> float:
    try:
        return math.fsum(values) / len(values)
    except OverflowError:
        # The sum is no float, the mean always is.
        return float(sum(map(Fraction, values)) / len(values))
