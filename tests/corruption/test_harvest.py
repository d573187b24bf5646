"""The harvested proposal: the model's own wrong commitments, and a fallback where it made none."""

import numpy as np
import pytest
import torch
from tiny_models import wrapped

from hf_rm.corruption import (
    FixedProposal,
    HarvestedProposal,
    RMDataCollator,
    UniformProposal,
    build_topk_cache,
    harvest,
)
from hf_rm.corruption.shards import ShardFolder

MASK, V = 0, 11
ROWS = [
    {
        "input_ids": [1 + (3 * i + j) % 10 for j in range(5 + i)],
        "editable_mask": [j > 0 for j in range(5 + i)],
        "idx": i,
    }
    for i in range(5)
]


def make(folder, model=None, rows=ROWS, **settings):
    model = wrapped(trained_to_remask=True) if model is None else model
    defaults = {"batch_size": 2, "shard_rows": 2, "reveal": "confidence", "steps": 3, "max_steps": 8}
    return harvest(model, rows, folder, **{**defaults, **settings})


def errors(store: ShardFolder) -> dict:
    """(row, position) to {token: count}."""
    found: dict = {}
    for arrays, keys in store.open():
        for place, key in enumerate(keys):
            for entry in range(*arrays["offsets"][place : place + 2]):
                at = found.setdefault((key, int(arrays["positions"][entry])), {})
                at[int(arrays["ids"][entry])] = int(arrays["counts"][entry])
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make(tmp_path_factory.mktemp("harvest"))


def batch():
    targets = np.zeros((5, 9), dtype=np.int64)
    for i, row in enumerate(ROWS):
        targets[i, : len(row["input_ids"])] = row["input_ids"]
    return targets, [row["idx"] for row in ROWS]


def test_it_records_what_decoding_wrote_wrongly(tmp_path):
    """Against a walk through the trajectory of a row on its own, all of it masked."""
    model, row = wrapped(trained_to_remask=True), ROWS[3]
    found = errors(make(tmp_path, model, rows=[row], mask_rate=(1.0, 1.0)))
    canvas = torch.tensor([[row["input_ids"][0], *[MASK] * 7]])
    editable = torch.tensor([row["editable_mask"]])
    out = model.generate_reflective(
        canvas, editable_mask=editable, reveal="confidence", steps=3, max_steps=8, output_trajectory=True
    )
    expected: dict = {}
    for before, after in zip(out.trajectory.states[:-1, 0], out.trajectory.states[1:, 0], strict=True):
        for position in range(8):
            token = int(after[position])
            if token != int(before[position]) and token not in (MASK, row["input_ids"][position]):
                at = expected.setdefault((3, position), {})
                at[token] = at.get(token, 0) + 1
    assert found == expected
    assert sum(sum(at.values()) for at in expected.values()) > 3


def test_prompts_and_right_tokens_are_never_errors(store):
    found = errors(store)
    assert found
    for (row, position), tokens in found.items():
        assert ROWS[row]["editable_mask"][position]
        assert not {MASK, ROWS[row]["input_ids"][position]} & tokens.keys()


def test_it_is_the_same_again_and_goes_on_where_it_stopped(tmp_path, store):
    again = make(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        p.name: p.read_bytes() for p in store.folder.iterdir()
    }
    header = again.header()
    again._write_header({**header, "shards": None})
    again.path(1).unlink()
    assert errors(make(tmp_path)) == errors(store)


def test_it_draws_errors_by_count_and_the_fallback_elsewhere(store):
    targets, keys = batch()
    uniforms = np.random.default_rng(0).random((5, 9, 4000))
    fallback = FixedProposal([0] + [1] * 10)
    drawn = HarvestedProposal(store, fallback).draw(uniforms, targets, keys)
    plain = fallback.draw(uniforms, targets, keys)
    assert (drawn != targets[..., None]).all()
    found = errors(store)
    for row in range(5):
        for position in range(9):
            tokens = found.get((row, position))
            if tokens is None:
                assert (drawn[row, position] == plain[row, position]).all()
                continue
            for token, count in tokens.items():
                share = (drawn[row, position] == token).mean()
                assert share == pytest.approx(count / sum(tokens.values()), abs=0.04)
    assert 0 < len(found) < 45


def test_a_share_of_the_draws_stays_the_fallbacks(store):
    targets, keys = batch()
    uniforms = np.random.default_rng(0).random((5, 9, 4000))
    drawn = HarvestedProposal(store, UniformProposal(V, [MASK]), share=0.25).draw(uniforms, targets, keys)
    for (row, position), tokens in errors(store).items():
        share = np.isin(drawn[row, position], list(tokens)).mean()
        assert share == pytest.approx(0.25 + 0.75 * len(tokens) / 9, abs=0.04)


def test_harvests_add_up(tmp_path, store):
    targets, keys = batch()
    uniforms = np.random.default_rng(0).random((5, 9, 50))
    fallback = UniformProposal(V, [MASK])
    once, twice = HarvestedProposal(store, fallback), HarvestedProposal([store, str(store.folder)], fallback)
    assert (once.draw(uniforms, targets, keys) == twice.draw(uniforms, targets, keys)).all()
    assert sum(c[-1] for _, c in twice._errors(0, targets[0]).values()) == 2 * sum(
        c[-1] for _, c in once._errors(0, targets[0]).values()
    )


def test_rows_that_no_harvest_has_take_the_fallback(store):
    targets, _ = batch()
    uniforms = np.random.default_rng(0).random((5, 9, 5))
    fallback = UniformProposal(V, [MASK])
    drawn = HarvestedProposal(store, fallback).draw(uniforms, targets, ["a", "b", "c", "d", "e"])
    assert (drawn == fallback.draw(uniforms, targets, list("abcde"))).all()


def test_a_row_draws_the_same_in_any_batch(store):
    collate = RMDataCollator(MASK, HarvestedProposal(store, UniformProposal(V, [MASK])), corruption_rate=(1.0, 1.0))
    alone, together = collate([ROWS[1]]), collate([ROWS[4], ROWS[1]])
    assert torch.equal(alone["start_ids"][0], together["start_ids"][1, :6])
    known = errors(store)
    drawn = {position: int(token) for position, token in enumerate(alone["start_ids"][0].tolist())}
    assert any((1, position) in known for position in drawn)
    for position, token in drawn.items():
        assert token in known.get((1, position), {token: 1})


def test_another_model_or_setting_is_refused_by_name(tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match="stale: `checkpoint` is"):
        make(tmp_path, wrapped(seed=1, trained_to_remask=True))
    with pytest.raises(ValueError, match="stale: `decoding` is"):
        make(tmp_path, steps=2)
    with pytest.raises(ValueError, match="stale: `seed` is"):
        make(tmp_path, seed=1)


def test_bad_arguments_are_named(tmp_path, store):
    with pytest.raises(ValueError, match="mask_rate"):
        make(tmp_path, mask_rate=(0.5, 0.1))
    with pytest.raises(ValueError, match="share"):
        HarvestedProposal(store, UniformProposal(V, [MASK]), share=0.0)
    cache = build_topk_cache(wrapped(), ROWS, tmp_path, k=2)
    with pytest.raises(ValueError, match="'top-k', not a harvest"):
        HarvestedProposal(cache, UniformProposal(V, [MASK]))
