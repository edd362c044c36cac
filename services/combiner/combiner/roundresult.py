"""A round that has ended, as FEDn's combiner reports it to its controller."""

from __future__ import annotations

from typing import Any

from combiner.domain.config import RoundConfig
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb


def training_result(job: pb.Job, name: str) -> dict[str, Any]:
    """Of a training job, by the combiner of that name. Times are seconds; checking a model is loading it."""
    config, timings = RoundConfig.parse(job.config), job.timings
    data = {
        "nr_expected_updates": len(job.asked),
        "nr_required_updates": config.clients_required,
        "timeout": config.round_timeout,
        "time_combination": timings["folding"] + timings["writing"],
        "aggregation_time": {
            "time_model_load": timings["checking"],
            "time_model_aggregation": timings["folding"],
            "nr_aggregated_models": len(job.accepted),
        },
    }
    model = {"model_id": job.model_id} if job.model_id else {}
    taken = job.ended_at - (job.started_at or job.ended_at)
    return {**_result(job, name), **model, "data": data, "time_exec_training": taken}


def validation_result(job: pb.Job, name: str) -> dict[str, Any]:
    """Of a validation or inference job: the answers, JSON text by client."""
    return {**_result(job, name), "data": {answer.client: answer.data for answer in job.answers}}


def _result(job: pb.Job, name: str) -> dict[str, Any]:
    return {
        "status": "Success" if job.state == pb.SUCCEEDED else "Failed",
        "reason": job.reason,
        "name": name,
        "config": {**job.config, "_job_id": job.job_id},
        "round_id": job.round_id,
    }
