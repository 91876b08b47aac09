"""Signals are evenly spaced, and none is given a time that is too late."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateful_workflow.worker.pace import SignalPace

times = st.lists(st.floats(0, 100), max_size=50).map(sorted)


@given(times, st.floats(1, 1e6))
def test_no_two_signals_are_closer_than_the_rate_allows(asked: list[float], rate: float) -> None:
    pace = SignalPace(rate)
    given_ = [pace.take(now, math.inf) for now in asked]
    for now, at in zip(asked, given_, strict=True):
        assert at is not None
        assert at >= now
    for one, after in pairwise(at for at in given_ if at is not None):
        assert after - one >= (1 / rate) * (1 - 1e-9) - 1e-9


@given(times)
def test_without_a_limit_every_signal_goes_at_once(asked: list[float]) -> None:
    pace = SignalPace(None)
    assert [pace.take(now, math.inf) for now in asked] == asked


def test_a_signal_that_would_be_too_late_takes_no_place_from_the_next_one() -> None:
    pace = SignalPace(1)
    assert pace.take(10, until=11) == 10
    assert pace.take(10, until=11) is None
    assert pace.take(10, until=12) == 11


@pytest.mark.parametrize("rate", [0, 0.5, -1, math.inf, math.nan])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="max_signals_per_second is 1 or more"):
        SignalPace(rate)
