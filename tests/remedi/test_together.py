"""An adapter, gradient checkpointing, two processes, accumulation and resuming, all at once, for both trainers."""

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import torchrun
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("script_together.py")
specification = importlib.util.spec_from_file_location("script_together", SCRIPT)
assert specification is not None and specification.loader is not None
together: Any = importlib.util.module_from_spec(specification)
specification.loader.exec_module(together)


@pytest.mark.slow
def test_two_processes_with_accumulation_an_adapter_and_checkpointing_equal_one(tmp_path: Path) -> None:
    """Two processes, twice two rows each, against eight rows at once; both with what saves memory switched on."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    done = subprocess.run(
        [*torchrun(), str(SCRIPT), str(tmp_path), json.dumps(settings)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in together.KINDS:
        two = load_file(tmp_path / f"{kind}.safetensors")
        plain = {"gradient_checkpointing": False, "per_device_train_batch_size": 8}
        before = {name: p.detach().clone() for name, p in together.make(kind, tmp_path).model.named_parameters()}
        one = together.run(kind, tmp_path / f"one-{kind}", **plain)
        assert one.keys() == two.keys() and any("lora" in name for name in one)
        assert any("stream" in name for name in one) == (kind != "rm")
        moved = max(float((one[name] - before[name]).abs().max()) for name in one)
        apart = max(float((one[name] - two[name]).abs().max()) for name in one)
        assert moved > 1e-3 and apart < 0.002 * moved, (kind, moved, apart)


@pytest.mark.parametrize("kind", together.KINDS)
def test_an_adapter_with_checkpointing_and_accumulation_resumes(tmp_path: Path, kind: str) -> None:
    """Four steps at once, and two and two: the same weights, bit for bit."""
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "optim": "adamw_torch"}
    settings = {**saving, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    whole = together.make(kind, tmp_path / "whole", **settings)
    whole.train()
    later = together.make(kind, tmp_path / "later", **settings)
    later.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    weights = dict(later.model.named_parameters())
    trained = {name: p for name, p in whole.model.named_parameters() if p.requires_grad}
    assert any("lora" in name for name in trained)
    for name, parameter in trained.items():
        assert torch.equal(weights[name], parameter), name
