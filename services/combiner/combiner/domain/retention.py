"""What is kept and what can go: the rules of docs/house-keeping.md, without a clock and I/O of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from combiner.domain.types import Model, State

DAY_S = 86_400.0
ORPHAN_S = DAY_S
"""Age from which an object in `models/` that no record names can go: longer than any commit takes."""
LEFTOVER_S = 7 * DAY_S
"""Age from which data without a record can go: no process hangs for as long between writing the two."""
UPLOAD_S = 7 * DAY_S
"""Age from which an upload that nobody asked for can go."""

PURGE_AT = 0.7
"""Part of the memory of Redis at which ended jobs and sessions go, the oldest first."""
REFUSE_AT = 0.9
"""Part of the memory of Redis at which nothing new is begun: the rest is for what runs."""


def why_upload_goes(age_s: float, owner: State | None, *, keep_updates: bool) -> str:
    """The reason, empty if it stays. `owner`: the state of the job that received it, None without one."""
    if owner is None:
        return "no job has received it for 7 days" if age_s >= UPLOAD_S else ""
    return "its job has ended" if owner.ended and not keep_updates else ""


class UnknownMetric(Exception):
    """No model has this metric; `known` are those that they have."""

    def __init__(self, metric: str, known: Sequence[str]) -> None:
        super().__init__(metric)
        self.metric = metric
        self.known = known


@dataclass(frozen=True, slots=True)
class Keep:
    """Of each session: its `newest` models (at least 1), and the one that is best by the metric `best`."""

    newest: int
    best: str = ""
    lowest_is_best: bool = False

    def surplus(self, models: Iterable[Model]) -> list[Model]:
        """The models that this does not keep, of those that rounds made. `models`: oldest first.

        Models that somebody put are never among them. Of equally good ones the newest is the best.

        Raises:
            UnknownMetric: no model has the metric.
        """
        made = [model for model in models if model.job_id]
        if self.best and not any(self.best in model.metrics for model in made):
            known = sorted({name for model in made for name in model.metrics})
            raise UnknownMetric(self.best, known)
        by_session = sorted(made, key=lambda model: model.session_id)  # stable: within one, oldest first
        return [
            model
            for _, group in groupby(by_session, key=lambda model: model.session_id)
            for model in self._surplus_of_one(list(group))
        ]

    def _surplus_of_one(self, models: Sequence[Model]) -> list[Model]:
        kept = {model.model_id for model in models[-self.newest :]}
        rated = [model for model in models if self.best in model.metrics]
        if rated:
            kept.add(max(reversed(rated), key=self._rating).model_id)
        return [model for model in models if model.model_id not in kept]

    def _rating(self, model: Model) -> float:
        value = model.metrics[self.best]
        return -value if self.lowest_is_best else value
