"""A session goes on through whatever is done to the release, with the bytes of one that nobody disturbed.

Each disturbance has a round of its own: half of the clients answer before it, the others while it lasts.
All are required: a lost answer would fail the round, and one that counted twice would change the bytes.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator

import pytest

from fedcombiner.client import OperatorClient
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.e2e.fleets import NOISE, ended, fleet, noise_by_round, seed, start, trained, until_accepted
from tests.e2e_k8s.cluster import Release, is_ready, run, wait_until
from tests.e2e_k8s.conftest import Reached, Tags
from tests.e2e_k8s.test_k8s_release import tag

pytestmark = pytest.mark.timeout(1800)

CLIENTS = 10
# Nobody's deadline is to be what ends a round, and nobody's absence.
PATIENT = {"round_timeout": 600, "client_grace": 300, "wait_for_clients": 300, "validate": False}

Disturbance = Callable[[Release], None]


@pytest.fixture(scope="module", autouse=True)
def _installed(release: Release) -> Iterator[None]:
    """The release as an older chart's user has it."""
    release.install(*tag(Tags().previous))
    yield
    release.helm("uninstall", release.name, "--wait", "--timeout", "3m")


def upgraded(release: Release) -> None:
    release.upgrade(f"image.tag={Tags().this}", "logLevel=debug")


def a_pod_deleted(part: str) -> Disturbance:
    def delete(release: Release) -> None:
        pods = release.pods(part)
        release.kubectl("delete", "pod", pods[0]["metadata"]["name"], "--wait")
        release.ready(part, len(pods))

    delete.__name__ = f"a {part} deleted"
    return delete


def a_pod_killed(part: str) -> Disturbance:
    def kill(release: Release) -> None:
        pods = release.pods(part)
        release.kubectl("delete", "pod", pods[-1]["metadata"]["name"], "--force", "--grace-period=0")
        release.ready(part, len(pods))

    kill.__name__ = f"a {part} killed"
    return kill


def both_back_ends_deleted(release: Release) -> None:
    a_pod_deleted("redis")(release)
    a_pod_deleted("minio")(release)


def drained(release: Release) -> None:
    """The node of a combiner. The only one there is takes pods again once the budget stops the drain."""
    node = release.pods("combiner")[0]["spec"]["nodeName"]
    selector = (
        f"app.kubernetes.io/instance={release.name},app.kubernetes.io/component in (combiner,modelstore)"
    )
    options = (
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=240s",
        f"--pod-selector={selector}",
    )
    drain = subprocess.Popen(
        ["kubectl", "drain", node, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_until("the drain to end, or pods to wait", lambda: drain.poll() is not None or homeless(release))
        # The budget: of two combiners and two modelstores one each was evicted, and the others stay.
        for part in ("combiner", "modelstore"):
            assert sum(is_ready(pod) for pod in release.pods(part)) >= 1
    finally:
        run("kubectl", "uncordon", node)
    said, _ = drain.communicate(timeout=300)
    assert drain.returncode == 0, said
    assert said.count("evicted") >= 4, said
    for part in ("combiner", "modelstore"):
        release.ready(part, 2)


def homeless(release: Release) -> bool:
    """Whether for each part a pod waits for a node."""
    return all(
        any(pod["status"]["phase"] == "Pending" for pod in release.pods(part))
        for part in ("combiner", "modelstore")
    )


def scaled(replicas: int) -> Disturbance:
    def scale(release: Release) -> None:
        release.upgrade(f"combiner.replicas={replicas}")
        release.ready("combiner", replicas)

    scale.__name__ = f"scaled to {replicas}"
    return scale


def rolled_back(release: Release) -> None:
    release.helm("rollback", release.name, "1", "--wait", "--timeout", "5m")
    [image] = {pod["spec"]["containers"][0]["image"] for pod in release.pods("combiner")}
    assert image.endswith(f":{Tags().previous}")


DISTURBANCES: list[Disturbance] = [
    upgraded,
    a_pod_deleted("combiner"),
    drained,
    scaled(3),
    a_pod_killed("combiner"),
    scaled(1),
    rolled_back,
    a_pod_deleted("gateway"),
    a_pod_killed("modelstore"),
    both_back_ends_deleted,
]


async def session_of(
    reached: Reached, operator: OperatorClient, answers: list[asyncio.Event] | None
) -> tuple[str, list[pb.Job]]:
    """A session of as many rounds as there are disturbances: the sha256 of its last model, and its jobs."""

    def gate(index: int, round_id: int) -> asyncio.Event | None:
        return answers[round_id - 1] if answers is not None and index >= CLIENTS // 2 else None

    async with fleet(reached, CLIENTS, content=noise_by_round, gate=gate) as clients:
        await clients.wait_connected(60)
        rounds = len(DISTURBANCES)
        session = await start(operator, await seed(operator, NOISE), CLIENTS, rounds=rounds, **PATIENT)
        if answers is not None:
            for number, (disturb, answer) in enumerate(zip(DISTURBANCES, answers, strict=True), 1):
                await until_accepted(operator, session, number, CLIENTS // 2)
                done = asyncio.create_task(asyncio.to_thread(disturb, reached.release), name=disturb.__name__)
                asyncio.get_running_loop().call_later(1.0, answer.set)
                await done
        done_session = await ended(operator, session, within=300)
        assert done_session.state == pb.SUCCEEDED, done_session.reason
        assert done_session.failed_rounds == 0, [result.reason for result in done_session.results]
        jobs = await trained(operator, session)
        assert all(sorted(job.accepted) == sorted(clients.names) for job in jobs)
    return (await operator.describe_model(done_session.model_id)).sha256, jobs


async def test_the_bytes_are_those_of_an_undisturbed_session(
    reached: Reached, operator: OperatorClient
) -> None:
    expected, _ = await session_of(reached, operator, None)
    sha256, jobs = await session_of(reached, operator, [asyncio.Event() for _ in DISTURBANCES])
    assert len(jobs) == len(DISTURBANCES)
    assert sha256 == expected
    # Pods were replaced; none was started a second time.
    assert reached.release.restarts() == {}
