"""Training across processes: two equal one with the doubled batch, and a killed run resumes to the same weights."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import torchrun
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("script.py")
POOL = {
    "pool_fraction": 0.5,
    "pool_start_step": 2,
    "muon_learning_rate": 0.01,
    "save_strategy": "steps",
    "save_steps": 3,
}


def run(folder: Path, settings: dict, *flags: str, launcher: tuple[str, ...] = ()) -> int:
    """Run the script; its exit code (negative: the signal that ended it)."""
    command = [*(launcher or (sys.executable,)), str(SCRIPT), str(folder), json.dumps(settings), *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def losses(folder: Path) -> list[dict]:
    return json.loads((folder / "losses.json").read_text())


def weights(folder: Path) -> dict:
    return load_file(folder / "final" / "model.safetensors")


# The one process never reads its scores in chunks, nor accumulates gradients. With ragged rows the labels have to be
# counted over all processes, and with the rows that the pool puts in place of the loader's.
@pytest.mark.parametrize(
    ("chunk", "accumulation", "pool", "rows"),
    [
        (0, 1, {}, ()),
        (5, 2, {}, ()),
        (0, 1, {"pool_fraction": 0.5}, ("--ragged",)),
        (5, 2, {"pool_fraction": 0.35, "pool_start_step": 2, "pool_reveal_threshold": 0.3}, ("--ragged",)),
    ],
)
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, chunk, accumulation, pool, rows):
    steps = {"max_steps": 8 if pool else 4, "pool_max_age": 3, **pool}
    shares = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    run(tmp_path / "two", {**steps, **shares, "loss_chunk_rows": chunk}, *rows, launcher=torchrun())
    run(tmp_path / "one", {**steps, "per_device_train_batch_size": 8}, *rows)
    for two, one in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    for name in ours:
        assert (ours[name] - theirs[name]).abs().max() < 1e-5, name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, {"max_steps": 9, **POOL})
    return weights(folder)


@pytest.mark.parametrize(
    ("flags", "survivor"),
    [
        (("--die-after", "5"), "checkpoint-3"),
        (("--die-while-writing", "2"), "checkpoint-3"),
        (("--die-while-saving", "2"), "checkpoint-3"),
    ],
    ids=["in mid-training", "in the middle of a file", "between writing and publication"],
)
def test_kill_and_resume_gives_the_same_weights(tmp_path, uninterrupted, flags, survivor):
    assert run(tmp_path, {"max_steps": 9, **POOL}, *flags) == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [survivor]
    run(tmp_path, {"max_steps": 9, **POOL}, "--resume")
    resumed = weights(tmp_path)
    for name, value in uninterrupted.items():
        assert (resumed[name] == value).all(), name
    assert not (tmp_path / ".staging").exists()
