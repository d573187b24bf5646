"""RMDataCollator: keyed draws, documented rates, consistent tensors."""

import doctest
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

import hf_rm.corruption.collator
from hf_rm.corruption import (
    AttemptsLaw,
    FixedProposal,
    PaperLaw,
    RemaskSFTCollator,
    RMDataCollator,
    UniformProposal,
    loss_parts,
    oracle_labels,
)
from hf_rm.corruption.random import KeyedUniforms, row_keys
from hf_rm.training.sft import MaskedSFTCollator

MASK = 0


def collator(**kwargs: Any) -> RMDataCollator:
    return RMDataCollator(**{"mask_token_id": MASK, "proposal": UniformProposal(12, excluded=[MASK]), **kwargs})


def features(count: int, length: int = 10) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 12, (count, length), generator=generator).tolist()
    return [{"input_ids": row, "idx": index} for index, row in enumerate(rows)]


def rows_of(batches: list[dict[str, Tensor]]) -> list[list[tuple[str, list[Any]]]]:
    """Every row of some batches, as comparable values."""
    return [
        [(name, value[row].tolist()) for name, value in sorted(batch.items())]
        for batch in batches
        for row in range(len(batch["input_ids"]))
    ]


@pytest.mark.parametrize(
    "collate",
    [
        collator(),
        collator(edit_weight=2.0, blank_rows=0.5),
        MaskedSFTCollator(MASK),
        RemaskSFTCollator(MASK, UniformProposal(12, excluded=[MASK])),
    ],
    ids=["rm", "rm, weights", "sft", "remask sft"],
)
def test_every_tensor_has_memory_of_its_own(collate: Any) -> None:
    """A loader for a GPU pins them, which is refused where several elements lie in one place."""
    for name, value in collate(features(3)).items():
        assert value.is_contiguous(), name


def test_docstring_example() -> None:
    result = doctest.testmod(hf_rm.corruption.collator)
    assert result.attempted > 2 and not result.failed


# Keyed draws


@pytest.mark.parametrize("law", [PaperLaw(6), AttemptsLaw(16, 2)])
def test_a_row_is_the_same_in_any_batch_and_any_order(law: Any) -> None:
    data, collate = features(6), collator(law=law, full_corruption=0.3)
    together = rows_of([collate(data)])
    assert together == [rows_of([collate([feature])])[0] for feature in data]
    assert together[::-1] == rows_of([collate(data[::-1])])
    assert together == rows_of([collate(data[:2]), collate(data[2:])])


@pytest.mark.parametrize("law", [PaperLaw(6), AttemptsLaw(16, 2)])
def test_a_longer_neighbour_changes_nothing(law: Any) -> None:
    data, collate = [*features(3, length=5), {"input_ids": [3] * 9, "idx": 77}], collator(law=law)
    short, padded = collate(data[:3]), collate(data)
    for name, value in short.items():
        assert torch.equal(padded[name][:3, :5], value), name


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing_and_see_the_epoch(workers: int) -> None:
    data = features(8)
    expected, collate = collator(), collator()
    loader = DataLoader(data, batch_size=3, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0)
    epochs = []
    for epoch in range(2):
        collate.set_epoch(epoch)
        expected.set_epoch(epoch)
        epochs.append(rows_of(list(loader)))
        assert epochs[-1] == rows_of([expected(data)])
    assert all(first != second for first, second in zip(*epochs))


def test_seed_epoch_and_key_decide() -> None:
    data = features(20)
    first, same, other_seed = collator(seed=1), collator(seed=1), collator(seed=2)
    assert rows_of([first(data)]) == rows_of([same(data)])
    assert rows_of([first(data)]) != rows_of([other_seed(data)])
    same.set_epoch(1)
    changed = [a != b for a, b in zip(rows_of([first(data)]), rows_of([same(data)]))]
    assert sum(changed) >= 19
    # The same tokens under another key are another draw; a key may be a string.
    renamed = [{**feature, "idx": f"row-{feature['idx']}"} for feature in data]
    assert rows_of([first(data)]) != rows_of([first(renamed)])


def test_a_draw_moves_no_global_random_state() -> None:
    before = torch.get_rng_state()
    collator()(features(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_keyed_uniforms_are_uniform_and_prefix_stable() -> None:
    uniforms = KeyedUniforms(row_keys(0, 0, range(2000)))
    first, second = uniforms.draw(3, 2), uniforms.draw(5)
    again = KeyedUniforms(row_keys(0, 0, range(2000)))
    # A wider draw begins with the narrower one, and does not shift what comes after it.
    assert (again.draw(7, 2)[:, :3] == first).all() and (again.draw(5) == second).all()
    joined = np.concatenate((first.reshape(2000, 6), second), -1)
    assert joined.min() >= 0 and joined.max() < 1
    assert abs(joined.mean() - 0.5) <= 4 * (1 / 12 / joined.size) ** 0.5
    assert abs((joined[:, 0] * joined[:, 1]).mean() - 0.25) <= 4 * (7 / 144 / 2000) ** 0.5
    assert len(set(joined.ravel().tolist())) == joined.size


# What is corrupted


def corrupted(batch: dict[str, Tensor]) -> Tensor:
    """(B, N) positions whose start is not the target: with drafts, exactly the corrupted ones."""
    return batch["start_ids"] != batch["target_ids"]


@pytest.mark.parametrize(
    ("rate", "low", "high"), [((0.2, 0.5), 2, 5), ((0.01, 0.05), 1, 1), ((1.0, 1.0), 10, 10), ((0.25, 0.35), 3, 3)]
)
def test_counts_are_uniform_within_the_rates(rate: tuple[float, float], low: int, high: int) -> None:
    rows = 4000
    data = [{"input_ids": [3] * 10, "idx": index} for index in range(rows)]
    counts = corrupted(collator(corruption_rate=rate)(data)).sum(-1)
    assert (int(counts.min()), int(counts.max())) == (low, high)
    p = 1 / (high - low + 1)
    for count in range(low, high + 1):
        share = float((counts == count).double().mean())
        assert abs(share - p) <= 4 * (p * (1 - p) / rows) ** 0.5


@pytest.mark.parametrize("high", [0.01, 0.02, 0.05, 0.3])
def test_a_low_of_nothing_leaves_rows_as_they_are_and_keeps_the_mean(high: float) -> None:
    rows, length = 8000, 40
    data = [{"input_ids": [3] * length, "idx": index} for index in range(rows)]
    counts = corrupted(collator(corruption_rate=(0.0, high))(data)).sum(-1).double()
    assert counts.min() == 0 and counts.max() == np.ceil(high * length)
    assert abs(float(counts.mean()) - high * length / 2) <= 4 * float(counts.std()) / rows**0.5


@given(
    length=st.integers(1, 40),
    high=st.floats(0.0, 1.0),
    seed=st.integers(0, 50),
    start=st.sampled_from(["draft", "canvas", "law"]),
    law=st.sampled_from([PaperLaw(6), AttemptsLaw(16, 2)]),
    blank=st.sampled_from([0.0, 0.5]),
)
def test_a_row_without_anything_corrupted_is_its_target_throughout(length, high, seed, start, law, blank) -> None:
    """Kept positions are still learnt, and so is a blank row, which is filled once and right."""
    settings = {"corruption_rate": (0.0, high), "start": start, "law": law, "seed": seed}
    data = [{"input_ids": [3] * length, "idx": index} for index in range(12)]
    drafts = collator(**{**settings, "start": "draft"}, blank_rows=blank)(data)
    batch = collator(**settings, blank_rows=blank)(data)
    assert (batch["labels"] != -100).all()
    untouched = ~corrupted(drafts).any(-1)
    blanks = (batch["history_ids"][..., 0] == MASK).all(-1) & untouched
    clean = untouched & ~blanks
    assert blank or not blanks.any()
    target = batch["target_ids"]
    for name in ("input_ids", "labels", "start_ids"):
        assert torch.equal(batch[name][clean], target[clean]), name
    assert (batch["history_ids"][clean] == 3).all()
    state = batch["input_ids"][blanks]
    assert ((state == MASK) | (state == 3)).all() and (batch["labels"][blanks] == 3).all()


def test_sudokus_counts_are_what_they_were() -> None:
    """4 to 20 of 81 cells, drawn as before a low of 0 had a meaning of its own."""
    data = [{"input_ids": [3] * 81, "idx": index} for index in range(500)]
    batch = collator(corruption_rate=(0.0493, 0.247), seed=7)(data)
    uniforms = KeyedUniforms(row_keys(7, 0, range(500))).draw(2)
    assert corrupted(batch).sum(-1).tolist() == (4 + np.floor(uniforms[:, 0] * 17)).astype(int).tolist()


def test_corrupted_positions_are_a_uniform_subset() -> None:
    rows = 4000
    data = [{"input_ids": [3] * 10, "idx": index} for index in range(rows)]
    share = corrupted(collator(corruption_rate=(0.3, 0.3))(data)).double().mean(0)
    assert ((share - 0.3).abs() <= 4 * (0.21 / rows) ** 0.5).all()


def test_full_corruption_has_its_probability() -> None:
    rows = 4000
    data = [{"input_ids": [3] * 10, "idx": index} for index in range(rows)]
    everywhere = corrupted(collator(corruption_rate=(0.1, 0.2), full_corruption=0.3)(data)).all(-1).double()
    assert abs(float(everywhere.mean()) - 0.3) <= 4 * (0.21 / rows) ** 0.5


def test_steps_are_uniform_over_the_horizon() -> None:
    rows = 6000
    data = [{"input_ids": [3, 4], "idx": index} for index in range(rows)]
    step = collator(law=PaperLaw(6), corruption_rate=(1.0, 1.0))(data)["history_lags"][:, 0, 0] - 1
    share = torch.bincount(step, minlength=6) / rows
    assert len(share) == 6 and ((share - 1 / 6).abs() <= 4 * (5 / 36 / rows) ** 0.5).all()


# The tensors


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    seed=st.integers(0, 100),
    full=st.sampled_from([0.0, 1.0]),
    start=st.sampled_from(["draft", "law", "canvas"]),
    data=st.data(),
)
def test_tensors_are_consistent(lengths: list[int], seed: int, full: float, start: str, data: st.DataObject) -> None:
    rows = []
    for index, length in enumerate(lengths):
        tokens = data.draw(st.lists(st.integers(1, 11), min_size=length, max_size=length))
        editable = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
        editable[data.draw(st.integers(0, length - 1))] = True
        rows.append({"input_ids": tokens, "idx": index, "editable_mask": editable})
    batch = collator(seed=seed, full_corruption=full, start=start, pad_token_id=1)(rows)
    width = max(lengths)
    for row, (feature, length) in enumerate(zip(rows, lengths)):
        padding = width - length
        assert batch["target_ids"][row].tolist() == feature["input_ids"] + [1] * padding
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * padding
        assert batch["editable_mask"][row].tolist() == feature["editable_mask"] + [False] * padding
    state, target, editable = batch["input_ids"], batch["target_ids"], batch["editable_mask"]
    assert torch.equal(batch["labels"], oracle_labels(state, target, editable, MASK))
    assert torch.equal(batch["labels"] == -100, ~editable)
    # What may not change shows its target now, at the start and in every run.
    frozen = ~editable
    assert torch.equal(state[frozen], target[frozen]) and torch.equal(batch["start_ids"][frozen], target[frozen])
    assert (batch["history_ids"][frozen] == target[frozen][:, None]).all()
    if full and start == "canvas":
        assert (batch["start_ids"][editable] == MASK).all()
    if full and start == "draft":
        assert ((batch["start_ids"] != target) & (batch["start_ids"] != MASK))[editable].all()
    # Bounds of runs descend to 1, and the step is the same for the whole row.
    lags = batch["history_lags"]
    assert (lags.diff(dim=-1) <= 0).all() and (lags[..., -1] == 1).all()
    assert torch.equal(lags[..., 0], lags[:, :1, 0].expand_as(lags[..., 0]))
    if start == "law":
        past = lags[..., 0] > 1
        assert torch.equal(batch["start_ids"][past], batch["history_ids"][..., 0][past])


def test_loss_weights_depend_on_the_position() -> None:
    assert "loss_weights" not in collator()(features(3))
    batch = collator(edit_weight=2.5)(features(30))
    assert torch.equal(batch["loss_weights"], torch.where(corrupted(batch), 2.5, 1.0))


def test_loss_parts_name_the_three_losses() -> None:
    state = torch.tensor([[9, 0, 4, 9]])
    target = torch.tensor([[4, 4, 4, 4]])
    editable = torch.tensor([[True, True, True, False]])
    labels = oracle_labels(state, target, editable, MASK)
    assert labels.tolist() == [[0, 4, 4, -100]]
    assert loss_parts(state, labels, MASK).tolist() == [[1, 0, 2, -100]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruption_rate": (0.5, 0.2)}, "corruption_rate"),
        ({"corruption_rate": (-0.1, 0.2)}, "corruption_rate"),
        ({"corruption_rate": (0.1, 1.2)}, "corruption_rate"),
        ({"full_corruption": 1.5}, "full_corruption"),
        ({"start": "end"}, "start"),
        ({"proposal": FixedProposal([1] * 10)}, "`proposal` may draw 0, the mask"),
        ({"proposal": UniformProposal(10)}, "`proposal` may draw 0, the mask"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collator(**settings)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"input_ids": [1, 2]}, "idx"),
        ({"idx": 0}, "input_ids"),
        ({"input_ids": [1, 2], "idx": 7, "editable_mask": [False, False]}, "row 7.*nothing editable"),
        ({"input_ids": [1, 2], "idx": 7, "editable_mask": [True]}, "row 7.*editable_mask"),
        ({"input_ids": [1, 0], "idx": 7}, r"row 7 has the mask \(0\) as a target"),
        ({"input_ids": [1, 2], "idx": 7, "editable_mask": [True, True, True]}, "row 7.*editable_mask"),
    ],
)
def test_bad_features_are_refused(feature: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collator()([feature])
