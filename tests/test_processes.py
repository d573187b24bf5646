"""Processes without an accelerator; what two of them make of it is tests/training/test_processes.py's."""

import pytest
import torch

from hf_rm.processes import meet_on_cpu


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
