"""The frozen top-k cache: exact, sharded, resumable, and refused where it is stale or damaged."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import torchrun
from tiny_models import wrapped
from tiny_training import tiny_model, tiny_rows
from torch.utils._python_dispatch import TorchDispatchMode

from hf_rm.corruption import FrozenTopKProposal, PaperLaw, RMDataCollator, ShardFolder, build_topk_cache
from hf_rm.corruption.random import KeyedUniforms, row_keys
from hf_rm.training.data import RowDataset

SCRIPT = Path(__file__).with_name("script_topk.py")
MASK = 0
# Unequal lengths; a prompt of two that may not change; keys that are not numbers in order.
ROWS = [
    {
        "input_ids": [1 + (5 * i + j) % 10 for j in range(4 + i)],
        "editable_mask": [j > 1 for j in range(4 + i)],
        "idx": f"row {7 * i}",
    }
    for i in range(5)
]


def build(folder, model=None, rows=ROWS, **settings):
    model = wrapped(suppressed_token_ids=[9]) if model is None else model
    return build_topk_cache(model, rows, folder, **{"k": 3, "batch_size": 2, "shard_rows": 2, **settings})


def laws(store: ShardFolder) -> dict:
    """(row, position) to {token: probability}."""
    found = {}
    for arrays, keys in store.open():
        for place, key in enumerate(keys):
            for entry in range(*arrays["offsets"][place : place + 2]):
                pair = zip(arrays["ids"][entry].tolist(), arrays["probabilities"][entry].tolist(), strict=True)
                found[key, int(arrays["positions"][entry])] = dict(pair)
    return found


@torch.no_grad()
def slow_laws(model, inputs=None, k: int = 3) -> dict:
    """The definition, a row and a position at a time, from all logits."""
    found = {}
    for row in ROWS:
        ids = torch.tensor([row["input_ids"]])
        read = ids if inputs is None else inputs[row["idx"]]
        logits = model(read, use_history=False).logits[0]
        for position, editable in enumerate(row["editable_mask"]):
            if not editable:
                continue
            scores = {t: float(s) for t, s in enumerate(logits[position]) if t not in (MASK, 9, int(ids[0, position]))}
            best = sorted(scores, key=lambda token: -scores[token])[:k]
            weights = torch.tensor([scores[token] for token in best]).softmax(0)
            found[row["idx"], position] = dict(zip(best, weights.tolist(), strict=True))
    return found


def assert_same_laws(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for place, law in one.items():
        assert list(law) == list(other[place]), place
        assert list(law.values()) == pytest.approx(list(other[place].values()), abs=2e-3), "in 16 bits"


def test_it_holds_the_definition(tmp_path):
    store = build(tmp_path)
    assert_same_laws(laws(store), slow_laws(wrapped()))
    for arrays, _ in store.open():
        assert arrays["ids"].dtype == np.int32 and arrays["probabilities"].dtype == np.float16


def test_the_masked_probe_reads_masks(tmp_path):
    uniforms = KeyedUniforms(row_keys(5, 0, [row["idx"] for row in ROWS])).draw(8)
    inputs = {}
    for row, numbers in zip(ROWS, uniforms, strict=True):
        length = len(row["input_ids"])
        masked = torch.tensor(row["editable_mask"]) & torch.from_numpy(numbers[:length] < 0.5)
        inputs[row["idx"]] = torch.tensor([row["input_ids"]]).masked_fill(masked, MASK)
    store = build(tmp_path, probe="masked", mask_rate=0.5, seed=5)
    assert_same_laws(laws(store), slow_laws(wrapped(), inputs))


def test_the_chunk_does_not_matter_and_bounds_the_scores(tmp_path):
    class MostRows(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dim() >= 2 and result.shape[-1] == 11:
                self.most = max(self.most, result.numel() // 11)
            return result

    model = wrapped(suppressed_token_ids=[9])
    whole = laws(build(tmp_path / "whole", chunk_rows=1000))
    # The head's weight, (11, 16), turned round has 11 columns as well: it is a view of 16 rows.
    with MostRows() as scores:
        build(tmp_path / "chunks", model, chunk_rows=2, batch_size=5)
    assert scores.most <= 16
    assert_same_laws(whole, laws(ShardFolder(tmp_path / "chunks")))


def run(folder: Path, *flags: str, launcher: tuple[str, ...] = ()) -> int:
    command = [*(launcher or (sys.executable,)), str(SCRIPT), str(folder), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("one")
    build_topk_cache(tiny_model(), tiny_rows(14), folder, k=4, batch_size=2, shard_rows=4)
    return files(folder)


def test_two_processes_write_what_one_does(tmp_path, one_process):
    run(tmp_path, launcher=torchrun())
    assert files(tmp_path) == one_process


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, one_process, monkeypatch):
    assert run(tmp_path, "--die-after", "2") == -signal.SIGKILL
    assert sum(name.startswith("shard") for name in files(tmp_path)) == 2
    with pytest.raises(ValueError, match="not finished"):
        FrozenTopKProposal(tmp_path)
    model, forwards = tiny_model(), []
    model.register_forward_hook(lambda *_: forwards.append(1))
    build_topk_cache(model, tiny_rows(14), tmp_path, k=4, batch_size=2, shard_rows=4)
    assert len(forwards) == 3, "rows 8 to 13"
    assert files(tmp_path) == one_process
    build_topk_cache(model, tiny_rows(14), tmp_path, k=4, batch_size=2, shard_rows=4)
    assert len(forwards) == 3, "a finished cache is not made again"


def other_weights():
    model = wrapped(suppressed_token_ids=[9])
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 3] += 1e-3
    return model


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("checkpoint", lambda: {"model": other_weights()}),
        ("data", lambda: {"rows": [*ROWS[:4], {**ROWS[4], "input_ids": [2, *ROWS[4]["input_ids"][1:]]}]}),
        ("data", lambda: {"rows": [*ROWS[:4], {**ROWS[4], "editable_mask": [True] * 8}]}),
        ("rows", lambda: {"rows": ROWS[:4]}),
        ("k", lambda: {"k": 4}),
        ("probe", lambda: {"probe": "masked"}),
        ("dtype", lambda: {"model": wrapped(suppressed_token_ids=[9]).to(torch.bfloat16)}),
        ("excluded", lambda: {"model": wrapped(suppressed_token_ids=[8])}),
        ("use_history", lambda: {"use_history": True}),
        ("shard_rows", lambda: {"shard_rows": 3}),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_stale_cache_is_refused_by_name(tmp_path, part, change, finished):
    build(tmp_path)
    if not finished:
        header = json.loads((tmp_path / "cache.json").read_text())
        (tmp_path / "cache.json").write_text(json.dumps({**header, "shards": None}))
        (tmp_path / "shard-00002.safetensors").unlink()
    before = files(tmp_path)
    with pytest.raises(ValueError, match=f"stale: .*`{part}` is"):
        build(tmp_path, **change())
    assert files(tmp_path) == before


def test_another_tokenizer_is_refused_by_name(tmp_path):
    class Tokenizer:
        special_tokens_map = {"mask_token": "?"}

        def __init__(self, *words):
            self.get_vocab = lambda: {word: number for number, word in enumerate(words)}

    build(tmp_path, tokenizer=Tokenizer("a", "b"))
    build(tmp_path, tokenizer=Tokenizer("a", "b"))
    with pytest.raises(ValueError, match="stale: `tokenizer` is"):
        build(tmp_path, tokenizer=Tokenizer("b", "a"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (truncate, "shard-00001.safetensors", r"shard-00001\.safetensors is truncated"),
        (flip, "shard-00001.safetensors", r"shard-00001\.safetensors is damaged"),
        (Path.unlink, "shard-00001.safetensors", r"shard-00001\.safetensors .* is missing"),
        (truncate, "cache.json", r"cache\.json is damaged"),
        (Path.unlink, "cache.json", r"no cache\.json"),
    ],
)
def test_a_damaged_cache_is_refused_by_name(tmp_path, damage, name, message):
    build(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(OSError, match=message):
        FrozenTopKProposal(tmp_path)
    if (tmp_path / "cache.json").exists():
        with pytest.raises(OSError, match=message):
            build(tmp_path)


def test_a_damaged_shard_of_an_unfinished_cache_is_refused(tmp_path):
    build(tmp_path)
    header = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps({**header, "shards": None}))
    truncate(tmp_path / "shard-00001.safetensors")
    with pytest.raises(OSError, match=r"shard-00001\.safetensors is damaged or truncated"):
        build(tmp_path)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter one")
    with pytest.raises(ValueError, match="not empty"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "`k` is 0"),
        ({"k": 9}, "`k` is 9: pass 1 to 8"),
        ({"probe": "dirty"}, "`probe` is 'dirty'"),
        ({"mask_rate": 0.0}, "`mask_rate`"),
        ({"chunk_rows": 0}, "`chunk_rows` is 0"),
        ({"rows": [{"input_ids": [1, 2]}]}, "idx"),
        ({"rows": [ROWS[0], ROWS[0]]}, "two rows have the key 'row 0'"),
    ],
)
def test_bad_arguments_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_scores_that_are_not_finite_are_refused(tmp_path):
    model = wrapped(suppressed_token_ids=[9])
    torch.nn.init.constant_(model.get_output_embeddings().weight, torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        build(tmp_path, model)


class TestDrawing:
    @pytest.fixture(scope="class")
    @staticmethod
    def store(tmp_path_factory):
        return build(tmp_path_factory.mktemp("cache"))

    def batch(self, *which: int):
        longest = max(len(ROWS[i]["input_ids"]) for i in which)
        targets = np.zeros((len(which), longest), dtype=np.int64)
        for place, i in enumerate(which):
            targets[place, : len(ROWS[i]["input_ids"])] = ROWS[i]["input_ids"]
        return targets, [ROWS[i]["idx"] for i in which]

    def test_it_follows_the_cached_law(self, store):
        targets, keys = self.batch(4)
        uniforms = np.random.default_rng(0).random((1, targets.shape[1], 20_000))
        drawn = FrozenTopKProposal(store).draw(uniforms, targets, keys)
        assert (drawn != targets[..., None]).all()
        for position in range(2, 8):
            law = laws(store)[keys[0], position]
            total = sum(law.values())
            for token, probability in law.items():
                share = (drawn[0, position] == token).mean()
                assert share == pytest.approx(probability / total, abs=0.02)
            assert set(drawn[0, position].tolist()) <= law.keys()

    def test_positions_draw_independently_by_their_own_number(self, store):
        targets, keys = self.batch(3)
        proposal = FrozenTopKProposal(store)
        low, high = np.zeros((1, targets.shape[1], 1)), np.full((1, targets.shape[1], 1), np.nextafter(1.0, 0.0))
        first, last = proposal.draw(low, targets, keys), proposal.draw(high, targets, keys)
        for position in range(2, targets.shape[1]):
            law = {token: p for token, p in laws(store)[keys[0], position].items() if p > 0}
            assert first[0, position, 0] == next(iter(law)), "the likeliest"
            assert last[0, position, 0] == list(law)[-1]
            mixed = np.where(np.arange(targets.shape[1])[None, :, None] == position, high, low)
            assert (proposal.draw(mixed, targets, keys) != first).sum() <= 1

    def test_a_row_draws_the_same_in_any_batch(self, store):
        collate = RMDataCollator(MASK, FrozenTopKProposal(store), PaperLaw(6), corruption_rate=(0.5, 1.0), seed=3)
        alone, together = collate([ROWS[1]]), collate([ROWS[4], ROWS[1], ROWS[0]])
        length = len(ROWS[1]["input_ids"])
        for name in ("input_ids", "labels", "start_ids"):
            assert torch.equal(alone[name][0], together[name][1, :length]), name
        assert (together["start_ids"] != together["target_ids"]).any()

    def test_a_workers_copy_draws_the_same(self, store):
        targets, keys = self.batch(0, 2)
        uniforms = np.random.default_rng(1).random((2, targets.shape[1], 2))
        proposal = FrozenTopKProposal(store)
        data = pickle.dumps(proposal)
        assert len(data) < 2000, "a worker gets the folder's name"
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            drawn = pool.apply(proposal.draw, (uniforms, targets, keys))
        assert (drawn == proposal.draw(uniforms, targets, keys)).all()

    def test_unknown_rows_and_other_tokens_are_refused(self, store):
        targets, keys = self.batch(2)
        proposal, uniforms = FrozenTopKProposal(store), np.zeros((1, targets.shape[1], 1))
        with pytest.raises(ValueError, match="'row 99' is not in the cache"):
            proposal.draw(uniforms, targets, ["row 99"])
        with pytest.raises(ValueError, match=f"{keys[0]!r} has other tokens"):
            proposal.draw(uniforms, targets[:, ::-1], keys)

    def test_a_row_dataset_serves_as_rows(self, tmp_path, store):
        assert_same_laws(laws(build(tmp_path, rows=RowDataset(ROWS))), laws(store))
