"""Confidence against correctness: the area by counting pairs, resampling of rows, where the scores come from."""

import math

import numpy as np
import pytest
import torch
from tiny_models import wrapped
from tiny_remedi import tiny_remedi

from hf_rm.evaluation.confidence import auroc, auroc_interval, token_confidence


def by_pairs(scores, right):
    """The definition: pairs in which the right token is above the wrong one, ties half."""
    pairs = [(s > t) + 0.5 * (s == t) for s in scores[right] for t in scores[~right]]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_area_is_the_share_of_pairs(levels):
    random = np.random.default_rng(levels)
    scores, right = random.integers(levels, size=60).astype(float), random.random(60) < 0.7
    assert auroc(scores, right) == pytest.approx(by_pairs(scores, right), abs=1e-12)
    assert auroc(-scores, right) == pytest.approx(1 - by_pairs(scores, right), abs=1e-12)


def test_exact_values():
    assert auroc([1, 2, 3, 4], [False, False, True, True]) == 1.0
    assert auroc([1, 1, 1, 1], [False, False, True, True]) == 0.5
    # Right ones at .35 and .8, wrong ones at .1 and .4: three pairs of four.
    assert auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == 0.75
    assert math.isnan(auroc([1, 2], [True, True])) and math.isnan(auroc([], []))


def test_resampling_counts_each_row_as_often_as_it_is_drawn():
    """With whole rows repeated by hand: the two rows' resamples are the only ones there are."""
    random = np.random.default_rng(0)
    scores, right, rows = random.random(40), random.random(40) < 0.5, np.repeat([7, 9], 20)
    values = {auroc(scores, right), auroc(scores[:20], right[:20]), auroc(scores[20:], right[20:])}
    found = auroc_interval(scores, right, rows, resamples=400)
    assert found.value == auroc(scores, right) and found.observations == 40
    assert (found.low, found.high) == pytest.approx((min(values), max(values)))


def test_an_interval_of_many_rows_holds_the_truth_and_narrows():
    def one(count, seed):
        random = np.random.default_rng(seed)
        right = random.random(count) < 0.5
        return auroc_interval(random.normal(size=count) + right, right, np.arange(count), resamples=200)

    truth = 0.5 * (1 + math.erf(0.5))  # two normals a unit apart
    wide, narrow = one(100, 0), one(2000, 0)
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)
    assert sum(found.low < truth < found.high for found in (one(300, seed) for seed in range(20))) >= 16


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"scores has shape \(2,\) and right \(1,\)"):
        auroc([1.0, 2.0], [True])
    with pytest.raises(ValueError, match=r"rows has shape \(1,\)"):
        auroc_interval([1.0, 2.0], [True, False], [0])


def test_scores_are_the_policy_or_the_two_atoms_of_eq_1():
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 1, 2], [5, 5, 5, 5]])
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]])
    remedi, rm = tiny_remedi(1), wrapped(1)
    with torch.no_grad():
        policy, logits = remedi(ids, attention_mask=real).policy, rm(ids, attention_mask=real).logits
    kept = logits.gather(-1, ids[..., None])[..., 0] - logits[..., 0]
    seen = real.bool()
    for model, expected in ((remedi, policy), (rm, kept)):
        found = token_confidence(model.train(), ids, real, batch_size=2)
        torch.testing.assert_close(found[seen], expected[seen], atol=1e-5, rtol=1e-5)
        assert model.training
