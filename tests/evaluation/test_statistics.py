import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_rm.evaluation import (
    Interval,
    mean_interval,
    paired_difference_interval,
    recall_table,
    shown_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_matches_newcombe_1998(successes, total, low, high):
    interval = wilson_interval(successes, total)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)
    assert interval.observations == total


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_encloses_its_rate_and_solves_the_score_equation(pair):
    successes, total = pair
    interval = wilson_interval(successes, total)
    assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0
    for end in (interval.low, interval.high):
        if 0 < end < 1:
            z = abs(interval.value - end) / math.sqrt(end * (1 - end) / total)
            assert z == pytest.approx(1.959964, rel=1e-4)


def test_no_data_gives_nan_not_a_rate():
    for interval in (wilson_interval(0, 0), mean_interval([]), paired_difference_interval([], [])):
        assert math.isnan(interval.value) and math.isnan(interval.low) and interval.observations == 0


def test_an_interval_is_shown_with_its_ends_or_as_a_dash():
    assert shown_interval(Interval(0.0625, 0.01, 0.125, 9)) == "6.2 [1.0, 12.5]"
    assert shown_interval(Interval(0.5, -0.25, 1.0, 9), digits=2, sign="+") == "+50.00 [-25.00, +100.00]"
    assert shown_interval([0.3, 0.1, 0.5], scale=1, digits=3) == "0.300 [0.100, 0.500]"
    assert shown_interval(wilson_interval(0, 0)) == "-"


def test_recall_is_shown_by_model_and_past_and_without_wrong_tokens_as_a_dash():
    rate = dict(zip(("recall", "low", "high", "count"), wilson_interval(3, 4), strict=True))
    nothing = dict(zip(("recall", "low", "high", "count"), wilson_interval(0, 0), strict=True))
    found = {"since_start": {**rate, "false_alarms": 0.00123}, "second_attempt": {**nothing, "false_alarms": 0.0}}
    table = recall_table([("rm", found)], of="cells", digits=2)
    assert table.title == "Re-mask recall of wrong cells by their history"
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns == {
        "model": ["rm", "rm"],
        "past": ["since start", "second attempt"],
        "recall %": ["75.00 [30.06, 95.44]", "-"],
        "wrong cells": ["4", "0"],
        "false alarms %": ["0.123", "0.000"],
    }


def test_mean_interval_by_hand():
    # mean 2, sample standard deviation 1, standard error 1 / sqrt(3)
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval == pytest.approx((2.0, 2 - 1.959964 / math.sqrt(3), 2 + 1.959964 / math.sqrt(3), 3), abs=1e-5)
    assert mean_interval([4.0]) == Interval(4.0, -math.inf, math.inf, 1)


def test_mean_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = rng.normal(3.0, 2.0, size=(2000, 60))
    covered = [i.low <= 3.0 <= i.high for i in map(mean_interval, samples)]
    assert 0.93 < np.mean(covered) < 0.97


def test_pairing_cancels_what_both_share():
    rng = np.random.default_rng(1)
    difficulty = rng.normal(0, 10, size=500)
    better = difficulty + 1 + rng.normal(0, 0.1, size=500)
    paired = paired_difference_interval(better, difficulty)
    assert 0.9 < paired.low < 1 < paired.high < 1.1
    alone = mean_interval(better)
    assert alone.high - alone.low > 20 * (paired.high - paired.low)


def test_paired_difference_of_booleans_is_the_difference_of_rates():
    assert paired_difference_interval([True, True, False, False], [True, False, False, False]).value == 0.25


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: wilson_interval(3, 2), "successes"),
        (lambda: wilson_interval(-1, 2), "successes"),
        (lambda: wilson_interval(1, 2, confidence=95), "confidence"),
        (lambda: mean_interval([[1.0]]), "values"),
        (lambda: paired_difference_interval([1.0], [1.0, 2.0]), "same items"),
    ],
)
def test_errors_name_the_argument(call, word):
    with pytest.raises(ValueError, match=word):
        call()
