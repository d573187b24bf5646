"""Metrics of a run's revisions: numbers worked by hand, and a real run of the loop."""

import math

import numpy as np
import pytest
import torch
from tiny_models import ScriptedModel, one_hot_logits

from hf_rm.evaluation import revision_metrics, wilson_interval
from hf_rm.evaluation.statistics import mean_interval

M = 0
REVEAL, REMASK = 1, 2
# Row 0, target 1 2 3 4: the wrong 5 goes, comes back, goes again, and becomes 1; the right 2 goes and comes back.
# Row 1, target 1 2 3 4: the wrong 6 is never touched; the mask becomes a wrong 5, which becomes 3 outright.
STATES = np.array(
    [
        [[5, 2, 3, 4], [6, 2, M, 4]],
        [[M, M, 3, 4], [6, 2, 5, 4]],
        [[5, 2, 3, 4], [6, 2, 3, 4]],
        [[M, 2, 3, 4], [6, 2, 3, 4]],
        [[1, 2, 3, 4], [6, 2, 3, 4]],
    ]
)
ACTIONS = np.array(
    [
        [[2, 2, 0, 0], [0, 0, 1, 0]],
        [[1, 1, 0, 0], [0, 0, 3, 0]],
        [[2, 0, 0, 0], [0, 0, 0, 0]],
        [[1, 0, 0, 0], [0, 0, 0, 0]],
    ]
)
TARGET = np.array([[1, 2, 3, 4], [1, 2, 3, 4]])


def test_numbers_worked_by_hand() -> None:
    metrics = revision_metrics((STATES, ACTIONS), TARGET)
    # Taken back: 5, 2, 5 in row 0 and 5 in row 1; all but the 2 were wrong.
    assert metrics.remask_precision == wilson_interval(3, 4)
    # Mistakes: 5 twice in row 0, 6 and 5 in row 1; the 6 stayed.
    assert metrics.remask_recall == wilson_interval(3, 4)
    # Wrong tokens were taken back at two positions; at one the same came back.
    assert metrics.replay_mistake == wilson_interval(1, 2)
    assert metrics.edits_per_token == mean_interval([3 / 4, 1 / 4])
    assert metrics.token_accuracy == mean_interval([1.0, 0.75])
    assert metrics.exact_rows == wilson_interval(1, 2)
    assert metrics.row_accuracy.tolist() == [1.0, 0.75]


def test_the_curve_is_accuracy_after_every_step() -> None:
    curve = revision_metrics((STATES, ACTIONS), TARGET, forwards_per_step=2).curve
    assert [point.forwards for point in curve] == [0, 2, 4, 6, 8]
    assert [point.token_accuracy.value for point in curve] == [0.625, 0.5, 0.75, 0.75, 0.875]
    assert [point.exact_rows.value for point in curve] == [0, 0, 0, 0, 0.5]


def test_only_editable_positions_count() -> None:
    editable = np.array([False, True, True, True])
    metrics = revision_metrics((STATES, ACTIONS), TARGET, editable_mask=editable)
    assert metrics.remask_precision == wilson_interval(1, 2)  # the right 2, and row 1's 5
    assert metrics.remask_recall == wilson_interval(1, 1)
    assert metrics.exact_rows == wilson_interval(2, 2)
    assert metrics.edits_per_token == mean_interval([1 / 3, 1 / 3])


def test_a_wrong_token_that_stays_is_one_mistake_however_long() -> None:
    states = np.array([[[5, 2]], [[5, M]], [[5, 2]], [[M, 2]], [[1, 2]]])
    actions = np.array([[[0, 2]], [[0, 1]], [[2, 0]], [[1, 0]]])
    assert revision_metrics((states, actions), [[1, 2]]).remask_recall == wilson_interval(1, 1)


def test_another_wrong_token_is_no_replay() -> None:
    states = np.array([[[5]], [[M]], [[6]], [[M]], [[5]]])
    actions = np.array([[[2]], [[1]], [[2]], [[1]]])
    assert revision_metrics((states[:4], actions[:3]), [[1]]).replay_mistake == wilson_interval(0, 1)
    # One position, though two of its wrong tokens were taken back; and "later" is any later step.
    assert revision_metrics((states, actions), [[1]]).replay_mistake == wilson_interval(1, 1)


def test_masks_left_are_wrong_at_the_end_but_no_mistakes() -> None:
    states, actions = np.array([[[M, 2]]]), np.zeros((0, 1, 2))
    metrics = revision_metrics((states, actions), [[1, 2]], mask_token_id=M)
    assert metrics.token_accuracy.value == 0.5
    assert metrics.remask_recall.observations == 0 and math.isnan(metrics.remask_recall.value)
    # Nothing says which id is the mask: then it counts as a token, and a wrong one.
    assert revision_metrics((states, actions), [[1, 2]]).remask_recall == wilson_interval(0, 1)


def test_padding_steps_change_nothing() -> None:
    longer = np.concatenate((STATES, STATES[-1:])), np.concatenate((ACTIONS, np.zeros_like(ACTIONS[:1])))
    assert revision_metrics(longer, TARGET).flat() == revision_metrics((STATES, ACTIONS), TARGET).flat()


def test_flat_numbers_hold_value_ends_and_count() -> None:
    flat = revision_metrics((STATES, ACTIONS), TARGET).flat()
    low, high = wilson_interval(3, 4)[1:3]
    assert [flat[f"remask_precision{end}"] for end in ("", "_low", "_high", "_count")] == [0.75, low, high, 4]
    assert all(isinstance(value, (int, float)) for value in flat.values())


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_real_run_with_and_without_guidance(guidance: float) -> None:
    """The model wants 1 2 3 4 everywhere: T2T mends the draft in one step, guidance takes two forwards for it."""
    target = torch.tensor([[6, 1, 2, 3, 4]])
    draft = torch.tensor([[6, 5, 2, 5, 4]])
    model = ScriptedModel(lambda ids: one_hot_logits(target.expand(len(ids), -1)))
    output = model.generate_reflective(
        draft,
        editable_mask=torch.tensor([[False, True, True, True, True]]),
        revise="t2t",
        guidance_scale=guidance,
        output_trajectory=True,
    )
    metrics = revision_metrics(output, target, editable_mask=torch.tensor([[False, True, True, True, True]]))
    assert metrics.remask_precision == wilson_interval(2, 2)
    assert metrics.remask_recall == wilson_interval(2, 2)
    assert metrics.edits_per_token.value == 0.5
    assert [point.forwards for point in metrics.curve[:2]] == [0, 1 if guidance == 1.0 else 2]
    assert [point.token_accuracy.value for point in metrics.curve[:2]] == [0.5, 1.0]
    assert revision_metrics(output.trajectory, target).token_accuracy.value == 1.0


def test_what_does_not_fit_is_refused() -> None:
    model = ScriptedModel(lambda ids: one_hot_logits(torch.ones_like(ids)))
    without = model.generate_reflective(torch.tensor([[M]]))
    with pytest.raises(ValueError, match="output_trajectory=True"):
        revision_metrics(without, [[1]])
    with pytest.raises(ValueError, match=r"target has shape \(1, 4\)"):
        revision_metrics((STATES, ACTIONS), TARGET[:1])
    with pytest.raises(ValueError, match=r"actions \(3, 2, 4\)"):
        revision_metrics((STATES, ACTIONS[:3]), TARGET)
    with pytest.raises(ValueError, match="not what happened"):
        revision_metrics((STATES, np.zeros_like(ACTIONS)), TARGET)
    with pytest.raises(ValueError, match="editable_mask is int64"):
        revision_metrics((STATES, ACTIONS), TARGET, editable_mask=np.ones((2, 4), dtype=np.int64))
    with pytest.raises(ValueError, match="no position in row 1"):
        revision_metrics((STATES, ACTIONS), TARGET, editable_mask=np.array([[True] * 4, [False] * 4]))
    with pytest.raises(ValueError, match="forwards_per_step is 0"):
        revision_metrics((STATES, ACTIONS), TARGET, forwards_per_step=0)
    swapped = np.where(ACTIONS == REVEAL, REMASK, np.where(ACTIONS == REMASK, REVEAL, ACTIONS))
    with pytest.raises(ValueError, match="one mask is expected"):
        revision_metrics((STATES, swapped), TARGET)
