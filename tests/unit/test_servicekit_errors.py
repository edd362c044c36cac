import grpc
import pytest

from fedcombiner.servicekit import errors
from fedcombiner.servicekit.errors import InvalidArgument, NotFound, ServiceError, Unavailable

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServiceError)]


def test_invalid_argument_names_field_value_and_what_is_allowed() -> None:
    error = InvalidArgument("clients_required", "-3", "an integer of at least 1")
    assert error.message == "clients_required: '-3' is not valid; allowed: an integer of at least 1"
    assert error.field == "clients_required"


def test_values_are_cut_and_cannot_write_to_a_terminal() -> None:
    message = InvalidArgument("id", "\x1b[2J\n\udc80" + "a" * 500, "a name").message
    assert message.isprintable()
    assert len(message) < 160
    assert r"\x1b[2J\n\udc80aaa" in message


def test_bytes_are_described_by_their_length_only() -> None:
    assert errors.shown(b"secret") == "6 bytes"


def test_long_messages_fit_into_a_grpc_trailer() -> None:
    assert len(NotFound("x" * 10_000).message) <= errors.MESSAGE_CHARS + 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not ServiceError])
def test_a_status_comes_back_as_the_error_that_was_raised(kind: type[ServiceError]) -> None:
    error = errors.from_status(kind.code, "why")
    assert type(error) is kind
    assert error.message == str(error) == "why"


def test_every_error_has_its_own_status() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)


def test_a_status_without_a_class_is_a_plain_error() -> None:
    error = errors.from_status(grpc.StatusCode.DATA_LOSS, "")
    assert type(error) is ServiceError
    assert error.message == "DATA_LOSS"


def test_only_what_may_be_tried_again_is_retryable() -> None:
    assert {kind.__name__ for kind in KINDS if kind.retryable} == {"Unavailable", "Aborted"}
    assert Unavailable("gone").retryable
