"""Processes without an accelerator."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from launching import torchrun

from hf_rm.processes import meet_on_cpu

# What a recipe does first: read its arguments, and ask which process this is.
SCRIPT = """
import sys
from pathlib import Path
from accelerate import PartialState
from hf_rm import RMTrainingArguments

args = RMTrainingArguments(sys.argv[1], report_to="none")
state = PartialState()
Path(sys.argv[1], f"{state.process_index} of {state.num_processes}, {args.world_size}").touch()
"""


@pytest.mark.parametrize(
    ("environment", "accelerator", "meet"),
    [
        ({"WORLD_SIZE": "2"}, False, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, False, True),
        ({"WORLD_SIZE": "2"}, True, False),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, False, False),
        ({}, False, False),
    ],
)
def test_several_processes_without_an_accelerator_meet_on_the_cpu(monkeypatch, environment, accelerator, meet):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    assert meet_on_cpu() is meet


@pytest.mark.skipif(torch.accelerator.is_available(), reason="two processes take an accelerator each")
def test_they_know_of_each_other_once_the_arguments_are_read(tmp_path: Path) -> None:
    script, found = tmp_path / "script.py", tmp_path / "found"
    script.write_text(SCRIPT)
    found.mkdir()
    done = subprocess.run(
        [*torchrun(), str(script), str(found)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in found.iterdir()} == {"0 of 2, 2", "1 of 2, 2"}
