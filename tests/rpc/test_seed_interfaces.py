"""FEDn's CombinerInterface and Channel against a combiner that runs, from plain threads."""

from __future__ import annotations

import base64
import json
import socket
import time
import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import grpc
import pytest
from combiner.interfaces import Channel, CombinerInterface, CombinerUnavailableError
from combiner.server import Combiner

from fedcombiner.servicekit.errors import InvalidArgument, NotFound, Unauthenticated
from fedcombiner.wire.pb import fedn_pb2, fedn_pb2_grpc
from tests.contract.state_kit import Server
from tests.rpc.seed_kit import (
    DEADLINE,
    Caller,
    interface_to,
    npz,
    operator,
    put_seed,
    seed_combiner,
    stubs_to,
    until,
)
from tests.tls_kit import Certificates


@pytest.fixture
def interface(seed: Combiner) -> CombinerInterface:
    return interface_to(seed)


@pytest.fixture
def nobody() -> Iterator[CombinerInterface]:
    """An interface to an address where somebody listens, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield CombinerInterface(
            {"name": "api"}, "nobody", "127.0.0.1", None, listener.getsockname()[1], timeout=0.15
        )


def test_report_has_the_documented_keys(interface: CombinerInterface) -> None:
    report = interface.report()
    assert list(report) == [
        "queue_len",
        "nr_active_trainers",
        "nr_active_validators",
        "active_trainers",
        "active_validators",
        "nr_active_clients",
        "nr_unprocessed_compute_plans",
        "name",
    ]
    assert report["name"] == "seed"
    assert report["nr_active_trainers"] == "0"


def test_active_clients_are_listed(seed: Combiner, interface: CombinerInterface) -> None:
    assert json.loads(interface.list_active_clients()) == {}
    with stubs_to(seed) as channel, Caller(channel, "a client") as client:
        client.open("ModelUpdateRequestStream")
        until(seed.nr_active_trainers, "the client")
        assert json.loads(interface.list_active_clients()) == {"client": [{"name": "a client"}]}
        interface.configure({"max_clients": 1})
        assert interface.allowing_clients() is False
    interface.configure()
    assert interface.allowing_clients() is True


def test_what_is_configured_is_checked(interface: CombinerInterface) -> None:
    with pytest.raises(
        InvalidArgument, match="parameter: 'tracer' is not valid; allowed: one of: max_clients"
    ):
        interface.configure({"tracer": "mine"})


def test_a_submitted_job_is_queued(seed: Combiner, interface: CombinerInterface) -> None:
    config = {"task": "training", "model_id": put_seed(seed), "round_id": 1, "clients_required": 7}
    response = interface.submit(config)
    assert isinstance(response, fedn_pb2.ControlResponse)
    assert [parameter.key for parameter in response.parameter] == ["job_id"]
    job = operator(seed, lambda client: client.get_job(response.parameter[0].value))
    assert (job.config["clients_required"], job.round_id) == ("7", "1")
    operator(seed, lambda client: client.cancel_job(job.job_id))
    assert interface.flush_model_update_queue() is None


def test_a_job_that_cannot_run_is_refused(interface: CombinerInterface) -> None:
    with pytest.raises(InvalidArgument, match="task: 'nothing' is not valid; allowed: training"):
        interface.submit({})
    with pytest.raises(NotFound, match="there is no model and no completed upload named nowhere"):
        interface.submit({"task": "validation", "model_id": "nowhere"})


def test_a_model_is_downloaded(seed: Combiner, interface: CombinerInterface) -> None:
    model_id, content = str(uuid.uuid4()), npz(w=range(1_000_000))
    seed.modelservice.set_model(BytesIO(content), model_id)
    model = interface.get_model(model_id)
    assert model is not None
    assert (model.tell(), model.read()) == (0, content)
    assert interface.get_model("nowhere") is None
    assert interface.get_model("../nowhere") is None


def test_every_call_to_an_unavailable_combiner_says_so_in_time(nobody: CombinerInterface) -> None:
    calls = (
        nobody.report,
        nobody.configure,
        nobody.flush_model_update_queue,
        nobody.allowing_clients,
        nobody.list_active_clients,
        lambda: nobody.submit({"task": "training"}),
        lambda: nobody.get_model("m"),
    )
    for call in calls:
        begun = time.monotonic()
        with pytest.raises(
            CombinerUnavailableError, match=r"combiner nobody at 127\.0\.0\.1:\d+ is unavailable"
        ):
            call()
        assert time.monotonic() - begun < DEADLINE


def test_a_combiner_whose_redis_is_away_is_unavailable(tmp_path: Path) -> None:
    away = Server()
    unavailable = pytest.raises(CombinerUnavailableError, match="Redis is away")
    with seed_combiner(away, tmp_path) as combiner, unavailable:
        interface_to(combiner).report()
    away._dir.rmdir()


def test_an_interface_survives_json(
    seed: Combiner, nobody: CombinerInterface, certificates: Certificates
) -> None:
    pem = certificates.ca_pem
    parts = ({"name": "api"}, "c", "127.0.0.1", "c.example.org", 1)
    given = CombinerInterface(*parts, pem, "a key", "10.0.0.1", {"max_clients": 3}, timeout=0.1)
    document = given.to_dict()
    assert document["report"] is None
    assert document["certificate"] == given.get_certificate() == base64.b64encode(pem).decode()
    assert document["key"] == given.get_key() == base64.b64encode(b"a key").decode()
    for again in (CombinerInterface.from_json(document), CombinerInterface.from_json(given.to_json())):
        assert (again.parent, again.name, again.address, again.fqdn, again.port) == parts
        assert (again.ip, again.config) == ("10.0.0.1", {"max_clients": 3})
        assert (again.certificate, again.key) == (pem, b"a key")

    document = json.loads(interface_to(seed).to_json())
    assert document["report"]["name"] == "seed"
    assert (document["certificate"], document["key"], document["config"]) == (None, None, {"max_clients": 8})
    assert interface_to(seed).get_certificate() is None
    assert interface_to(seed).get_key() is None


DOCUMENT = {"name": "c", "address": "a", "port": 1}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("no json", "combiner_config: 'no json' is not valid; allowed: a JSON object"),
        ("[]", "combiner_config: .* a JSON object"),
        ({"name": "c", "address": "a"}, "port: None is not valid; allowed: required"),
        ({**DOCUMENT, "x": 1}, "combiner_config: 'x' is not valid; allowed: the keys"),
        ({**DOCUMENT, "certificate": "?"}, "certificate: '\\?' .*base64"),
        ({**DOCUMENT, "key": 7}, "key: 7 .*base64"),
        ({**DOCUMENT, "certificate": "YQ=="}, "certificate: .* in PEM format"),
        ({**DOCUMENT, "port": "many"}, "port: 'many' is not valid; allowed: a whole number from 1 to 65535"),
        ({**DOCUMENT, "port": True}, "port: True .*from 1 to 65535"),
        ({**DOCUMENT, "address": "a b"}, "address: 'a b' .*a host name or an IP address"),
        ({**DOCUMENT, "config": "max_clients"}, "config: 'max_clients' is not valid; allowed: an object"),
        ("[" * 100_000, "combiner_config: .* a JSON object"),
    ],
)
def test_a_document_that_is_none_is_refused(document: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        CombinerInterface.from_json(document)  # type: ignore[arg-type]


def test_tls_is_verified(seed_server: Server, tmp_path: Path, certificates: Certificates) -> None:
    with seed_combiner(seed_server, tmp_path, **certificates.good.settings) as combiner:
        own = certificates.good.certificate.read_bytes()
        for trusted in (certificates.ca_pem, own, own.decode()):
            assert interface_to(combiner, certificate=trusted).report()["name"] == "seed"
            with Channel("localhost", combiner.port, trusted).get_channel() as channel:
                assert report_name(channel) == "seed"
        for distrusted, why in (
            (certificates.other_ca.read_bytes(), "no authority that this client trusts has signed it"),
            (None, "the server speaks TLS, this client does not"),
        ):
            with pytest.raises(CombinerUnavailableError, match=why):
                interface_to(combiner, certificate=distrusted).report()
            with Channel("localhost", combiner.port, distrusted).get_channel() as channel:
                with pytest.raises(grpc.RpcError) as refused:
                    report_name(channel)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_combiner_without_tls_says_so(seed: Combiner, certificates: Certificates) -> None:
    with pytest.raises(CombinerUnavailableError, match="the server does not speak TLS"):
        interface_to(seed, certificate=certificates.ca_pem).report()


def test_a_combiner_with_tokens_asks_for_one(seed_server: Server, tmp_path: Path) -> None:
    token = "a-token-of-an-operator"
    with seed_combiner(seed_server, tmp_path, operator_token=token) as combiner:
        assert interface_to(combiner, token=token).report()["name"] == "seed"
        with pytest.raises(Unauthenticated):
            interface_to(combiner).report()
        assert combiner.flush_model_update_queue(), "this process needs none"


def test_a_channel_is_plaintext_without_a_certificate(seed: Combiner) -> None:
    with Channel("127.0.0.1", seed.port).get_channel() as channel:
        assert report_name(channel) == "seed"
    with pytest.raises(InvalidArgument, match="certificate: 'x' is not valid; allowed: a certificate in PEM"):
        Channel("127.0.0.1", seed.port, "x")
    with pytest.raises(InvalidArgument, match="port: 0 is not valid"):
        Channel("127.0.0.1", 0)


def report_name(channel: grpc.Channel) -> str:
    reply = fedn_pb2_grpc.ControlStub(channel).Report(fedn_pb2.ControlRequest(), timeout=DEADLINE)
    return {parameter.key: parameter.value for parameter in reply.parameter}["name"]
