"""Answers of clients to a validation, read and parsed in portions: they can be hundreds of MiB."""

from __future__ import annotations

import asyncio
from functools import partial

from combiner.domain.metrics import Figures
from combiner.domain.types import Job
from combiner.ports import Jobs
from combiner.rounds.waiting import steady


async def figures_of(jobs: Jobs, job: Job) -> Figures:
    """The figures in all answers of a job that takes no more of them."""
    figures = Figures(len(job.answered))
    for clients in job.answer_pages():
        answers = await steady(partial(jobs.answers, job.job_id, clients))
        await asyncio.to_thread(figures.add, answers)
    return figures
