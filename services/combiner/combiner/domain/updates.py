"""What the messages of clients say about an update or a failure, read out of the JSON that they carry.

FEDn's Python clients put everything into `ModelUpdate.meta`, and in there the task's own data as JSON in JSON
under `config`; the C++ client puts the task's data into `ModelUpdate.config`. A task is known by the id that
the combiner gave it, which comes back as `correlation_id` or as `_task_id` in the task's data, or both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from combiner.domain.jsontext import read_object, text_of
from combiner.domain.params import is_id

# Characters of JSON. Reading as much takes the event loop a few milliseconds at most, whatever it holds.
MAX_CHARS = 256 * 1024
MAX_EXAMPLES = 2**29 - 1
_ROUND_CHARS = 128
_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class TaskRef:
    """Which task an answer belongs to, as far as it says; an empty text where it does not."""

    task_id: str = ""
    job_id: str = ""
    round_id: str = ""


@dataclass(frozen=True, slots=True)
class UpdateMeta:
    """`problem` says for a person why there is no usable `num_examples` (0 then); else it is empty."""

    num_examples: int
    problem: str
    task_id: str
    job_id: str
    round_id: str


def parse_update_meta(meta_json: str, config_field: str = "") -> UpdateMeta:
    """Of a ModelUpdate's `meta` and `config`. Nothing in them raises."""
    meta = read_object(meta_json, MAX_CHARS)
    nested = (meta or {}).get("config")
    ref = parse_task_data(nested if isinstance(nested, str) else "")
    if ref == TaskRef():
        ref = parse_task_data(config_field)
    if meta is None:
        num_examples, problem = 0, f"meta is not a JSON object of at most {MAX_CHARS} characters"
    else:
        num_examples, problem = _num_examples(meta)
    return UpdateMeta(num_examples, problem, ref.task_id, ref.job_id, ref.round_id)


def parse_task_data(data_json: str) -> TaskRef:
    """Of the data that a task carried, as a client gives it back."""
    data = read_object(data_json, MAX_CHARS) or {}
    return TaskRef(_id(data, "_task_id"), _id(data, "_job_id"), text_of(data.get("round_id"), _ROUND_CHARS))


def parse_failure(status_data_json: str) -> TaskRef:
    """Of a WARNING status: its `data` is the request that the client could not do, as protobuf's JSON."""
    request = read_object(status_data_json, MAX_CHARS) or {}
    data = request.get("data")
    ref = parse_task_data(data if isinstance(data, str) else "")
    return TaskRef(ref.task_id or _id(request, "correlationId"), ref.job_id, ref.round_id)


def _id(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return value if isinstance(value, str) and is_id(value) else ""


def _num_examples(meta: Mapping[str, Any]) -> tuple[int, str]:
    training = meta.get("training_metadata")
    value = training.get("num_examples") if isinstance(training, dict) else None
    if value is None:
        return 0, "training_metadata.num_examples is missing"
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if whole and not isinstance(value, bool) and 1 <= value <= MAX_EXAMPLES:
        return int(value), ""
    return 0, f"num_examples is {_shown(value)}, not a whole number from 1 to {MAX_EXAMPLES}"


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not -(10**18) < value < 10**18:
        return "too large a number"
    text = ascii(value[:_SHOWN_CHARS] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
