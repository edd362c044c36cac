"""Which models and uploads are kept."""

from __future__ import annotations

import pytest
from combiner.domain.retention import DAY_S, Keep, UnknownMetric, why_upload_goes
from combiner.domain.types import Model, State
from hypothesis import given
from hypothesis import strategies as st


def made(model_id: str, session_id: str = "s", **metrics: float) -> Model:
    return Model(model_id=model_id, session_id=session_id, job_id=f"j{model_id}", metrics=metrics)


def ids(models: list[Model]) -> list[str]:
    return [model.model_id for model in models]


def test_the_newest_of_each_session_stay() -> None:
    models = [made("a1", "a"), made("b1", "b"), made("a2", "a"), made("a3", "a"), made("b2", "b")]
    assert ids(Keep(1).surplus(models)) == ["a1", "a2", "b1"]
    assert ids(Keep(2).surplus(models)) == ["a1"]
    assert ids(Keep(3).surplus(models)) == []


def test_models_that_somebody_put_stay_and_do_not_count() -> None:
    models = [Model("seed"), made("1"), Model("other"), made("2")]
    assert ids(Keep(1).surplus(models)) == ["1"]


@pytest.mark.parametrize(("lowest", "gone"), [(False, ["1", "3"]), (True, ["1", "2"])])
def test_the_best_stays_too(lowest: bool, gone: list[str]) -> None:
    models = [made("1", x=2.0), made("2", x=5.0), made("3", x=1.0), made("4", x=3.0)]
    assert ids(Keep(1, "x", lowest).surplus(models)) == gone


def test_of_equally_good_ones_the_newest_stays_and_who_has_no_metric_is_not_the_best() -> None:
    models = [made("1", x=1.0), made("2", x=1.0), made("3"), made("4")]
    assert ids(Keep(1, "x").surplus(models)) == ["1", "3"]


def test_a_session_without_the_metric_keeps_its_newest() -> None:
    models = [made("a1", "a", x=1.0), made("a2", "a"), made("b1", "b"), made("b2", "b")]
    assert ids(Keep(1, "x").surplus(models)) == ["b1"]


def test_a_metric_that_no_model_has_is_no_reason_to_remove_anything() -> None:
    with pytest.raises(UnknownMetric) as caught:
        Keep(1, "acuracy").surplus([made("1", accuracy=1.0, loss=2.0), made("2")])
    assert caught.value.known == ["accuracy", "loss"]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.floats(-9, 9))),
    st.integers(1, 5),
    st.booleans(),
)
def test_what_goes_is_never_new_or_best(
    rounds: list[tuple[str, float | None]], newest: int, lowest: bool
) -> None:
    models = [
        made(str(number), session, **({} if value is None else {"x": value}))
        for number, (session, value) in enumerate(rounds)
    ]
    best = "x" if any(model.metrics for model in models) else ""
    gone = Keep(newest, best, lowest).surplus(models)
    for session in "abc":
        mine = [model for model in models if model.session_id == session]
        kept = [model for model in mine if model not in gone]
        assert kept[len(kept) - min(newest, len(mine)) :] == mine[-newest:]
        assert len(kept) <= newest + bool(best)
        rated = [model.metrics["x"] for model in mine if model.metrics]
        if best and rated:
            extreme = min(rated) if lowest else max(rated)
            assert extreme in [model.metrics.get("x") for model in kept]


@pytest.mark.parametrize(
    ("age_s", "owner", "keep_updates", "goes"),
    [
        (7 * DAY_S - 1, None, False, False),
        (7 * DAY_S, None, False, True),
        (99 * DAY_S, State.RUNNING, False, False),
        (99 * DAY_S, State.QUEUED, False, False),
        (0, State.SUCCEEDED, False, True),
        (0, State.FAILED, False, True),
        (0, State.CANCELLED, False, True),
        (99 * DAY_S, State.SUCCEEDED, True, False),
    ],
)
def test_uploads_stay_while_somebody_may_need_them(
    age_s: float, owner: State | None, keep_updates: bool, goes: bool
) -> None:
    assert bool(why_upload_goes(age_s, owner, keep_updates=keep_updates)) == goes
