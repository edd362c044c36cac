"""What the combiner counts. Labels are closed sets; never a client, a job or a session."""

from __future__ import annotations

from collections.abc import Callable

from combiner.domain.types import Kind, Reason, State
from combiner.ports import Verdict
from combiner.upkeep.removal import Kind as RemovedKind
from fedcombiner.servicekit.metrics import Metrics

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
CLIENT_RPCS = (
    "SendHeartbeat",
    "SendStatus",
    "SendModelUpdate",
    "SendModelValidation",
    "SendModelPrediction",
    "SendModelMetric",
    "SendTelemetryMessage",
    "SendAttributeMessage",
    "SendBackwardCompletion",
)


class CombinerMetrics:
    """Implements `rounds.meter.Meter`."""

    def __init__(self, metrics: Metrics) -> None:
        ended = [state for state in State if state.ended]
        self._jobs = metrics.counters(
            "jobs_ended_total", "Jobs by how they ended.", kind=list(Kind), state=ended
        )
        self._updates = metrics.counters(
            "answers_total", "Answers of clients by verdict.", verdict=list(Verdict)
        )
        self._accepted = metrics.counter("updates_accepted_total", "Updates that are in an aggregate.")
        self._rejected = metrics.counters(
            "updates_rejected_total", "Answers that were rejected, by reason.", reason=list(Reason)
        )
        self._nameless = metrics.counters(
            "nameless_messages_total", "Messages without a usable sender, which are ignored.", rpc=CLIENT_RPCS
        )
        self._fold = {
            part: metrics.histogram(f"{part}_seconds", f"Time spent {part} one update or aggregate.", SECONDS)
            for part in ("checking", "folding", "writing")
        }
        self._removed = metrics.counters(
            "housekeeping_removed_total", "What house-keeping has removed.", kind=list(RemovedKind)
        )
        self._gauges = metrics

    def job_ended(self, kind: str, state: str) -> None:
        self._jobs.labels(kind, state).inc()

    def update(self, verdict: str, reason: str) -> None:
        self._updates.labels(verdict).inc()
        if verdict == Verdict.REJECTED:
            self._rejected.labels(reason).inc()

    def nameless(self, rpc: str) -> None:
        self._nameless.labels(rpc).inc()

    def accepted(self) -> None:
        self._accepted.inc()

    def rejected(self, reason: str) -> None:
        self._rejected.labels(reason).inc()

    def part(self, part: str, seconds: float) -> None:
        self._fold[part].observe(seconds)

    def removed(self, kind: str) -> None:
        self._removed.labels(kind).inc()

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is scraped."""
        self._gauges.gauge(name, help_text).set_function(value)
