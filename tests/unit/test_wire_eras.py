"""What each client generation means by its numbers and bytes."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from fedcombiner.wire.eras import (
    ERAS,
    PREDICTION,
    STREAM_TASKS,
    TRAINING,
    VALIDATION,
    era_of_sender,
    era_of_subscription,
    identity,
    read_timestamp,
    timestamp_text,
)
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.fedn_pb2 import Client

MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))
OLD = [era for era in ERAS.values() if era.old_numbers]
ANY = pytest.mark.parametrize("era", ERAS.values(), ids=lambda era: era.name)


@pytest.mark.parametrize(
    ("package", "rpc", "role", "era"),
    [
        ("grpc", "ModelUpdateRequestStream", 0, "0.5"),
        ("grpc", "ModelValidationRequestStream", 0, "0.5"),
        ("grpc", "TaskStream", 0, "0.8"),
        ("fedn", "TaskStream", 0, "0.9"),
        ("fedn", "TaskStream", 1, "0.20"),
    ],
)
def test_a_subscription_shows_the_era(package: str, rpc: str, role: int, era: str) -> None:
    assert era_of_subscription(package, rpc, Client(role=role, name="c")) is ERAS[era]


@pytest.mark.parametrize(
    ("package", "role", "era"), [("grpc", 0, "0.5"), ("fedn", 0, "0.9"), ("fedn", 1, "0.20")]
)
def test_a_sender_shows_the_era(package: str, role: int, era: str) -> None:
    assert era_of_sender(package, Client(role=role)) is ERAS[era]


@pytest.mark.parametrize(
    ("era", "combiner", "client"), [("0.5", 1, 0), ("0.8", 1, 0), ("0.9", 1, 0), ("0.20", 2, 1)]
)
def test_the_roles_that_clients_look_for(era: str, combiner: int, client: int) -> None:
    assert ERAS[era].combiner_role == combiner
    assert ERAS[era].client_role == client


@ANY
def test_roles_are_written_and_read_alike(era) -> None:
    for role in fedn_pb2.Role.values():
        assert era.read_role(era.write_role(role)) == role


def test_old_role_numbers() -> None:
    roles = [fedn_pb2.CLIENT, fedn_pb2.COMBINER, fedn_pb2.REDUCER, fedn_pb2.OTHER]
    for era in OLD:
        assert [era.read_role(number) for number in range(4)] == roles
        assert era.read_role(9) == fedn_pb2.OTHER


@pytest.mark.parametrize(
    ("era", "warnings"), [("0.5", {2, 3}), ("0.8", {2, 3}), ("0.9", {2, 3}), ("0.20", {3, 4})]
)
def test_which_log_levels_are_warnings(era: str, warnings: set[int]) -> None:
    assert {number for number in range(-1, 9) if ERAS[era].is_warning(number)} == warnings


@ANY
def test_log_levels_are_written_and_read_alike(era) -> None:
    for level in fedn_pb2.LogLevel.values():
        expected = fedn_pb2.INFO if era.old_numbers and level == fedn_pb2.NONE else level
        assert era.read_log_level(era.write_log_level(level)) == expected
    assert era.read_log_level(99) == fedn_pb2.NONE


@given(MOMENTS)
@ANY
def test_timestamps_are_written_and_read_alike(era, moment: datetime) -> None:
    assert read_timestamp(era.write_timestamp(moment)) == moment


def test_timestamps_of_the_eras() -> None:
    moment = datetime(2023, 11, 17, 8, 9, 10, tzinfo=UTC)
    assert ERAS["0.5"].write_timestamp(moment) == b"2023-11-17 08:09:10.000000"
    expected = Timestamp()
    expected.FromDatetime(moment)
    assert Timestamp.FromString(ERAS["0.8"].write_timestamp(moment)) == expected


@pytest.mark.parametrize(
    ("raw", "moment"),
    [
        (b"2023-11-17 08:09:10.25", datetime(2023, 11, 17, 8, 9, 10, 250_000, UTC)),
        (b"2023-11-17 08:09:10", datetime(2023, 11, 17, 8, 9, 10, tzinfo=UTC)),
        (b"2023-11-17T10:09:10+02:00", datetime(2023, 11, 17, 8, 9, 10, tzinfo=UTC)),
        (b"", None),
        (b"1 o'clock", None),
        (b"yesterday", None),
        (b"\x08", None),
        (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f", None),
    ],
)
def test_reads_timestamps_or_none(raw: bytes, moment: datetime | None) -> None:
    assert read_timestamp(raw) == moment


@given(st.binary(max_size=40))
def test_no_bytes_upset_the_reading_of_timestamps(raw: bytes) -> None:
    moment = read_timestamp(raw)
    assert moment is None or moment.tzinfo is UTC


def test_text_of_a_timestamp_is_utc_and_has_a_fraction() -> None:
    moment = datetime(2023, 11, 17, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    assert timestamp_text(moment) == "2023-11-16 23:00:00.000000"


def test_a_client_is_known_by_its_id_or_else_its_name() -> None:
    assert identity(Client(name="n", client_id="i")) == "i"
    assert identity(Client(name="n")) == "n"
    assert identity(Client()) == ""


def test_streams_carry_their_kinds_of_tasks() -> None:
    assert STREAM_TASKS["ModelUpdateRequestStream"] == {TRAINING}
    assert STREAM_TASKS["ModelValidationRequestStream"] == {VALIDATION, PREDICTION}
    assert STREAM_TASKS["TaskStream"] == {TRAINING, VALIDATION, PREDICTION}
