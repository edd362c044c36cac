"""FEDn's Combiner object, from plain threads and over real sockets."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from combiner.server import Combiner, Role

from fedcombiner.servicekit.binding import BindError
from fedcombiner.servicekit.errors import InvalidArgument, NotFound, StartupError, Unavailable
from fedcombiner.servicekit.settings import InvalidSettings
from fedcombiner.wire.pb import fedn_pb2, fedn_pb2_grpc
from tests.contract.state_kit import Server
from tests.rpc.seed_kit import (
    DEADLINE,
    Caller,
    Discovery,
    interface_to,
    operator,
    put_seed,
    seed_combiner,
    stubs_to,
    until,
)
from tests.tls_kit import Certificates

TRAINING, VALIDATION = "ModelUpdateRequestStream", "ModelValidationRequestStream"


@pytest.fixture
def channel(seed: Combiner) -> Iterator[grpc.Channel]:
    with stubs_to(seed) as made:
        yield made


class Pair(NamedTuple):
    """Client a trains, client b trains and validates."""

    a: Caller
    b: Caller


@pytest.fixture
def clients(seed: Combiner, channel: grpc.Channel, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The two once they count as active. Names are new ones: requests stay with a client until answered."""
    ours = re.sub(r"\W", "-", request.node.name)
    with Caller(channel, f"a-{ours}") as a, Caller(channel, f"b-{ours}") as b:
        a.open(TRAINING)
        b.open(TRAINING, VALIDATION)
        until(lambda: seed.nr_active_trainers() == 2, "two trainers")
        until(lambda: seed.nr_active_validators() == 1, "one validator")
        yield Pair(a, b)
    until(lambda: not seed.nr_active_trainers() and not seed.nr_active_validators(), "nobody")


def test_clients_are_listed_while_their_streams_are_open(
    seed: Combiner, channel: grpc.Channel, clients: Pair
) -> None:
    a, b = clients
    assert [client.name for client in seed.get_active_trainers()] == [a.name, b.name]
    assert [client.name for client in seed.get_active_validators()] == [b.name]
    heard = a.connector.SendHeartbeat(fedn_pb2.Heartbeat(sender=a.sender), timeout=DEADLINE)
    assert (heard.sender.name, heard.response) == (a.name, "Heartbeat received")
    listed = a.connector.ListActiveClients(
        fedn_pb2.ListClientsRequest(channel=fedn_pb2.MODEL_VALIDATION_REQUESTS), timeout=DEADLINE
    )
    assert [client.name for client in listed.client] == [b.name]


def test_configure_bounds_how_many_clients_are_accepted(channel: grpc.Channel, clients: Pair) -> None:
    connector, control = fedn_pb2_grpc.ConnectorStub(channel), fedn_pb2_grpc.ControlStub(channel)

    def accepting(limit: str) -> int:
        parameter = fedn_pb2.Parameter(key="max_clients", value=limit)
        control.Configure(fedn_pb2.ControlRequest(parameter=[parameter]), timeout=DEADLINE)
        return connector.AcceptingClients(fedn_pb2.ConnectionRequest(), timeout=DEADLINE).status

    assert [accepting("2"), accepting("3")] == [fedn_pb2.NOT_ACCEPTING, fedn_pb2.ACCEPTING]


def test_a_model_update_is_requested_from_all_or_from_some(seed: Combiner, clients: Pair) -> None:
    model_id = put_seed(seed)
    config = {"model_id": model_id, "round_id": 7, "lr": 0.5}
    assert seed.request_model_update(config) == [client.name for client in clients]
    requests = [client.next(TRAINING) for client in clients]
    told = {"model_id": model_id, "round_id": "7", "lr": "0.5"}
    for client, request in zip(clients, requests, strict=True):
        assert json.loads(request.data) == {**told, "_task_id": request.correlation_id}
        assert (request.model_id, request.receiver.name) == (model_id, client.name)
        assert (request.sender.name, request.sender.role) == ("seed", fedn_pb2.COMBINER)
    assert requests[0].correlation_id != requests[1].correlation_id

    assert seed.request_model_update(config, [clients.b.sender]) == [clients.b.name]
    assert clients.b.next(TRAINING).receiver.name == clients.b.name


def test_a_validation_is_requested(seed: Combiner, clients: Pair) -> None:
    model_id, b = put_seed(seed), clients.b
    assert seed.request_model_validation(model_id, {"round_id": "1"}) == [b.name]
    request = b.next(VALIDATION)
    assert (request.model_id, request.is_inference, request.receiver.name) == (model_id, False, b.name)
    assert seed.request_model_validation(model_id, {"task": "inference"}, [b.name]) == [b.name]
    assert b.next(VALIDATION).is_inference


def test_requests_that_cannot_be_are_refused(seed: Combiner, clients: Pair) -> None:
    with pytest.raises(NotFound, match="model_id: there is no model 'nowhere'"):
        seed.request_model_update({"model_id": "nowhere"})
    with pytest.raises(NotFound, match=r"model_id: there is no model '\.\./\.\.'"):
        seed.request_model_validation("../..", {})
    with pytest.raises(NotFound, match=r"receiver.name: no client named 'stranger' has connected"):
        seed.request_model_update({"model_id": put_seed(seed)}, ["stranger"])


@pytest.mark.parametrize(
    ("rpc", "message", "stream"),
    [
        ("SendModelUpdateRequest", fedn_pb2.TaskRequest, TRAINING),
        ("SendModelValidationRequest", fedn_pb2.ModelValidationRequest, VALIDATION),
    ],
)
def test_a_request_by_rpc_reaches_its_receiver(clients: Pair, rpc: str, message: Any, stream: str) -> None:
    request = message(receiver=clients.b.sender, sender=fedn_pb2.Client(name="me"), model_id="m", data="{}")
    answer = getattr(clients.a.stub, rpc)(request, timeout=DEADLINE)
    assert answer.response.endswith("from client me")
    assert clients.b.next(stream).model_id == "m"


def test_a_validation_is_registered_for_its_job(seed: Combiner, clients: Pair) -> None:
    model_id = put_seed(seed)
    job_id = seed.control.push_round_config({"task": "validation", "model_id": model_id})
    request = clients.b.next(VALIDATION)
    seed.register_model_validation(
        fedn_pb2.ModelValidation(
            sender=clients.b.sender,
            model_id=model_id,
            data='{"accuracy": 0.75}',
            correlation_id=request.correlation_id,
        )
    )
    job = operator(seed, lambda client: client.wait_job(job_id))
    assert [(answer.client, answer.data) for answer in job.answers] == [
        (clients.b.name, '{"accuracy": 0.75}')
    ]


def test_answers_by_rpc_are_confirmed(clients: Pair) -> None:
    """In FEDn's words, also where nobody asked: an error would end its clients."""
    update = fedn_pb2.ModelUpdate(sender=clients.a.sender, model_update_id="u", meta="{}")
    validation = fedn_pb2.ModelValidation(sender=clients.a.sender, data="{}")
    status = fedn_pb2.Status(sender=clients.a.sender, status="Ready.")
    stub = clients.a.stub
    assert stub.SendModelUpdate(update, timeout=DEADLINE).response == "RECEIVED ModelUpdate  from client  "
    assert (
        stub.SendModelValidation(validation, timeout=DEADLINE).response
        == "RECEIVED ModelValidation  from client  "
    )
    assert clients.a.connector.SendStatus(status, timeout=DEADLINE).response == "Status received."


def test_the_queue_is_flushed_and_jobs_are_stopped(seed: Combiner, channel: grpc.Channel) -> None:
    control = fedn_pb2_grpc.ControlStub(channel)
    assert seed.flush_model_update_queue() is True
    flushed = control.FlushAggregationQueue(fedn_pb2.ControlRequest(), timeout=DEADLINE)
    assert flushed.message == "Success"
    config = {"model_id": put_seed(seed), "round_id": "1", "task": "training", "wait_for_clients": "60"}
    parameters = [fedn_pb2.Parameter(key=key, value=value) for key, value in config.items()]
    control.Start(fedn_pb2.ControlRequest(parameter=parameters), timeout=DEADLINE)
    report = control.Report(fedn_pb2.ControlRequest(), timeout=DEADLINE)
    assert report.parameter[-1] == fedn_pb2.Parameter(key="name", value="seed")
    assert control.Stop(fedn_pb2.ControlRequest(), timeout=DEADLINE).message == "1 job cancelled"


def test_the_newest_model_is_the_global_one(seed: Combiner, channel: grpc.Channel) -> None:
    model_id = put_seed(seed)
    request = fedn_pb2.GetGlobalModelRequest(sender=fedn_pb2.Client(name="reducer"))
    reply = fedn_pb2_grpc.ReducerStub(channel).GetGlobalModel(request, timeout=DEADLINE)
    assert (reply.model_id, reply.sender.name, reply.receiver.name) == (model_id, "seed", "reducer")


def test_a_status_of_the_combiner_is_told_beside_those_of_clients(seed: Combiner) -> None:
    about = fedn_pb2.TaskRequest(model_id="m")
    seed.report_status("Aggregating.", log_level=2, type=fedn_pb2.LOG, request=about)

    async def statuses(client: Any) -> list[tuple[str, str]]:
        events = await client.recent_events(1000, client="seed")
        return [(event.text, event.reason) for event in events]

    until(lambda: ("Aggregating.", "WARNING") in operator(seed, statuses), "the status")


@pytest.mark.parametrize("rpc", ["ModelUpdateStream", "ModelValidationStream"])
def test_idle_streams_stay_open_until_the_end(seed_server: Server, tmp_path: Path, rpc: str) -> None:
    with seed_combiner(seed_server, tmp_path) as combiner, stubs_to(combiner) as channel:
        with Caller(channel, "idler") as client:
            client.open(rpc)
            until(lambda: len(combiner.app.hub._idle) == 1, "an idle stream")
            combiner.stop()
            assert client.calls[rpc].code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(RuntimeError, match="the combiner is closed"):
            combiner.nr_active_trainers()
        combiner.stop()


def test_run_returns_when_the_combiner_is_stopped(seed_server: Server, tmp_path: Path) -> None:
    combiner = seed_combiner(seed_server, tmp_path)
    with combiner as running:
        assert running.role is Role.COMBINER
        threads = [threading.Thread(target=run) for run in (running.run, running.control.run)]
        for thread in threads:
            thread.start()
        running.stop()
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT is KeyboardInterrupt, also where whoever started the tests had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_on_a_signal(
    seed_server: Server, tmp_path: Path, interruptible: None, number: signal.Signals
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with seed_combiner(seed_server, tmp_path) as combiner:

        def signal_it() -> None:
            until(lambda: signal.getsignal(signal.SIGTERM) is not before, "the handler")
            os.kill(os.getpid(), number)

        thread = threading.Thread(target=signal_it)
        thread.start()
        combiner.run()
        thread.join(DEADLINE)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_combiner_without_redis_says_so(tmp_path: Path) -> None:
    away = Server()
    with seed_combiner(away, tmp_path) as combiner, pytest.raises(Unavailable, match="Redis is away"):
        combiner.get_active_trainers()
    away._dir.rmdir()


def test_a_config_that_cannot_be_is_refused(seed: Combiner, seed_server: Server, tmp_path: Path) -> None:
    for config, error, message in (
        ({"max_client": 8}, InvalidArgument, "config: 'max_client' is not valid; allowed: .*max_clients"),
        ({"aggregator": "fedopt"}, InvalidArgument, "aggregator: 'fedopt' is not valid; allowed: fedavg"),
        ({"max_clients": "many"}, InvalidSettings, "MAX_CLIENTS='many': .*allowed: "),
        ({"name": "a b"}, InvalidSettings, "NAME='a b': "),
        ({"secure": "yes"}, InvalidArgument, "secure: 'yes' is not valid; allowed: True, False"),
        ({"secure": True}, InvalidArgument, "secure: True .*with tls_cert_file and tls_key_file, or with"),
        ({"discover_host": "h", "port": 0}, StartupError, "must be HOST:PORT"),
        ({"port": seed.port}, BindError, f"PORT={seed.port}: cannot listen"),
    ):  # fmt: skip
        with pytest.raises(error, match=message), seed_combiner(seed_server, tmp_path, **config):
            pass


@pytest.mark.parametrize("verify", [True, False])
def test_a_secure_combiner_has_its_certificate_from_the_discovery(
    seed_server: Server, tmp_path: Path, certificates: Certificates, verify: bool
) -> None:
    files = certificates.good
    pair = {"certificate": files.certificate, "key": files.key}
    encoded = {name: base64.b64encode(path.read_bytes()).decode() for name, path in pair.items()}
    whom = {"discovery_ca_file": certificates.ca} if verify else {}
    with Discovery.running() as discovery:
        discovery.speak_tls(files)
        discovery.answer = (200, {"status": "added", **encoded})
        config = {"discover_host": "localhost", "discover_port": discovery.port, "token": "secret"}
        with seed_combiner(
            seed_server,
            tmp_path,
            **config,
            port=free_port(),
            secure=True,
            verify=verify,
            fqdn="fl.example.org",
            **whom,
        ) as combiner:
            assert interface_to(combiner, certificate=certificates.ca_pem).report()["name"] == "seed"
        assert discovery.asked == (
            "/add_combiner",
            "Token secret",
            {
                "combiner_id": "seed",
                "address": "localhost",
                "fqdn": "fl.example.org",
                "port": combiner.port,
                "secure_grpc": True,
            },
        )


def test_a_discovery_that_refuses_a_secure_combiner_ends_it(
    seed_server: Server, tmp_path: Path, certificates: Certificates
) -> None:
    with Discovery.running() as discovery:
        discovery.speak_tls(certificates.good)
        discovery.answer = (401, {"message": "who are you"})
        config = {"discover_host": "localhost", "discover_port": discovery.port, "port": free_port()}
        refused = pytest.raises(StartupError, match="the discovery refused this combiner: who are you")
        with refused, seed_combiner(seed_server, tmp_path, **config, secure=True, verify=False):
            pass


def free_port() -> int:
    """A port that nobody listens on: what is announced has to be known before it is bound."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
