"""Remask RL in two processes: the same runs, rewards and weights as in one with the doubled batch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import torchrun
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("script_rl.py")


def script(
    folder: Path, policy: str, settings: dict, *flags: str, launcher: tuple[str, ...] = (sys.executable,)
) -> int:
    """Run the script; its exit code (negative: the signal that ended it)."""
    done = subprocess.run(
        [*launcher, str(SCRIPT), str(folder), json.dumps(settings), policy, *flags],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def run(
    folder: Path, policy: str, size: int, launcher: tuple[str, ...] = (sys.executable,), use_cpu: bool = True
) -> dict:
    settings = {
        "use_cpu": use_cpu,
        "max_steps": 2,
        "per_device_train_batch_size": size,
        "learning_rate": 0.05,
        "max_grad_norm": 0.0,
    }
    assert script(folder, policy, settings, launcher=launcher) == 0
    logs = [entry for entry in json.loads((folder / "logs.json").read_text()) if "reward" in entry]
    names = ("reward", "reward_std", "rollout/num_steps", "surprise/tokens", "surprise/positions")
    return {
        "logs": [[entry[name] for name in names] for entry in logs],
        **load_file(folder / "final/model.safetensors"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["remedi", "blocks", "rm"])
def test_two_processes_equal_one(tmp_path: Path, policy: str) -> None:
    """
    RM's runs differ in length between the processes, which still run as many forward passes; and they meet on the CPU
    without being told where there is nothing else.
    """
    use_cpu = policy != "rm" or torch.accelerator.is_available()
    two = run(tmp_path / "two", policy, 4, torchrun(), use_cpu)
    one = run(tmp_path / "one", policy, 8)
    assert len(one["logs"]) == 2
    for ours, theirs in zip(two.pop("logs"), one.pop("logs"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5


def test_killed_in_a_save_it_goes_on_from_the_one_before(tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.05, "keyed": False}
    assert script(tmp_path / "whole", "remedi", settings) == 0
    killed = tmp_path / "killed"
    assert script(killed, "remedi", settings, "--die-while-saving", "2") == -signal.SIGKILL
    assert [path.name for path in killed.glob("checkpoint-*")] == ["checkpoint-2"]
    files = {path.name for path in (killed / "checkpoint-2").iterdir()}
    assert {"training_args.json", "optimizer.pt"} <= files and not {"training_args.bin", "README.md"} & files
    assert script(killed, "remedi", settings, "--resume") == 0
    assert not (killed / ".staging").exists() and not (killed / "README.md").exists()
    whole, resumed = (load_file(folder / "final" / "model.safetensors") for folder in (tmp_path / "whole", killed))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
