"""What a round is told to do: the parameters of `Control.Start`, checked.

All values are text, as FEDn's controller sends them: numbers in decimal, booleans as `True` and `False`, and
`None` (or nothing) for the default. docs/sessions.md is the table of all keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from combiner.domain.params import ConfigError, Params, is_id, is_label
from combiner.domain.types import Kind

__all__ = ["AGGREGATORS", "HELPERS", "MAX_ROUND_TIMEOUT", "ConfigError", "RoundConfig", "helper_name"]

MAX_ROUND_TIMEOUT = 30 * 24 * 3600.0
AGGREGATORS = ("fedavg",)
# Every helper that a release of FEDn came with. They differ in what a client does with the arrays.
HELPERS = (
    "androidhelper",
    "binaryhelper",
    "kerashelper",
    "numpyarrayhelper",
    "numpyhelper",
    "pytorchhelper",
    "splitlearninghelper",
)
ID_ALLOWED = "1 to 128 letters, digits, '.', '_' and '-', the first a letter or digit"
LABEL_ALLOWED = "1 to 128 printable characters"
_REQUESTED = 8


@dataclass(frozen=True, slots=True)
class RoundConfig:
    """A round that can run. Times are seconds. `params` is everything that was given, for the clients."""

    task: Kind
    model_id: str
    round_id: str = ""
    session_id: str = ""
    round_timeout: float = 180.0
    buffer_size: int = -1
    clients_required: int = 1
    clients_requested: int = _REQUESTED
    over_selection: float = 1.0
    grace: float | None = None
    client_grace: float = 10.0
    wait_for_clients: float = 0.0
    seed: int | None = None
    attempt: int = 1
    helper_type: str = "numpyhelper"
    aggregator: str = "fedavg"
    delete_models_storage: bool = True
    params: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> RoundConfig:
        """Raises ConfigError naming the first key whose value cannot run."""
        params = Params(given)
        task = Kind(params.choice("task", tuple(Kind)))
        training = task is Kind.TRAINING
        required = params.integer("clients_required", 1, at_least=1)
        return cls(
            task=task,
            model_id=params.text("model_id", is_id, ID_ALLOWED),
            round_id=params.text("round_id", is_label, LABEL_ALLOWED, default=None if training else ""),
            session_id=params.text("session_id", is_label, LABEL_ALLOWED, default=""),
            round_timeout=params.seconds("round_timeout", 180.0, more_than=0.0, at_most=MAX_ROUND_TIMEOUT),
            buffer_size=_buffer_size(params),
            clients_required=required,
            clients_requested=params.integer(
                "clients_requested", max(_REQUESTED, required), at_least=required
            ),
            over_selection=params.number("over_selection", 1.0, at_least=1.0, at_most=10.0),
            grace=_grace(params),
            client_grace=params.seconds("client_grace", 10.0),
            wait_for_clients=params.seconds("wait_for_clients", 0.0),
            seed=params.optional_integer("seed"),
            attempt=params.integer("attempt", 1, at_least=1),
            helper_type=helper_name(params),
            aggregator=params.choice("aggregator", AGGREGATORS, default="fedavg"),
            delete_models_storage=params.boolean("delete_models_storage", True),
            params=dict(given),
        )

    def task_data(self, job_id: str) -> str:
        """The JSON object that each task carries: all parameters as text, as FEDn has it, and `_job_id`."""
        passed_on = {key: value for key, value in self.params.items() if not key.startswith("_")}
        return json.dumps({**passed_on, "_job_id": job_id})


def helper_name(params: Params) -> str:
    """FEDn's API also takes the short names, `keras` for `kerashelper`."""
    short = tuple(name.removesuffix("helper") for name in HELPERS)
    chosen = params.choice("helper_type", HELPERS + short, default="numpyhelper", shown=HELPERS)
    return chosen if chosen in HELPERS else f"{chosen}helper"


def _buffer_size(params: Params) -> int:
    if params.get("buffer_size") == "-1":
        return -1
    return params.integer("buffer_size", -1, at_least=1, allowed="-1, or a whole number of at least 1")


def _grace(params: Params) -> float | None:
    return None if params.get("grace") is None else params.seconds("grace", 0.0)
