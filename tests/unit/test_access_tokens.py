"""Tokens and headers as text."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcombiner.access.record import TokenRecord
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import PREFIX, digest, new_token, presented
from fedcombiner.servicekit.errors import Unauthenticated

SECRET = "fct_s3cret-that-must-not-be-shown"


def test_tokens_are_long_different_and_can_be_told_from_other_secrets() -> None:
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(token.startswith(PREFIX) and len(token) == len(PREFIX) + 43 for token in made)


@pytest.mark.parametrize("scheme", ["Token", "Bearer", "bearer", "TOKEN"])
def test_a_token_comes_as_fedn_clients_send_it(scheme: str) -> None:
    assert presented(f"{scheme} {SECRET}") == SECRET


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        SECRET,
        "Bearer",
        "Bearer ",
        f"Basic {SECRET}",
        f"Bearer {SECRET} {SECRET}",
        f"Bearer\n{SECRET}",
        "Bearer " + SECRET * 100,
    ],
)
def test_any_other_header_is_refused_and_not_repeated(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        presented(header)
    assert SECRET not in caught.value.message
    assert "Bearer TOKEN" in caught.value.message


@given(st.text(max_size=600))
def test_no_header_is_more_than_refused(header: str) -> None:
    with suppress(Unauthenticated):
        assert presented(header) in header


def test_a_record_says_why_its_token_is_not_good_any_more() -> None:
    record = TokenRecord(id="1", role=Role.CLIENT, created=0, expires=100)
    assert record.trouble(99.9) == ""
    assert record.trouble(100) == "Token expired"
    assert record.model_copy(update={"revoked": 5.0}).trouble(0) == "Token revoked"
    assert TokenRecord(id="1", role=Role.CLIENT).trouble(1e12) == ""


def test_what_is_kept_of_a_token_does_not_hold_it() -> None:
    assert SECRET not in digest(SECRET)
    assert len(digest(SECRET)) == 64
