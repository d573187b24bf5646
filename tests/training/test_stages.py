"""What stages of a run share: a clock that counts over interruptions."""

import time
from types import SimpleNamespace

import pytest

from hf_rm.training.stages import Clock, read_clock


@pytest.fixture
def hands(monkeypatch) -> SimpleNamespace:
    """What the clock reads; a test moves them."""
    now = SimpleNamespace(cpu=100.0, wall=500.0)
    monkeypatch.setattr(time, "process_time", lambda: now.cpu)
    monkeypatch.setattr(time, "perf_counter", lambda: now.wall)
    return now


def test_a_clock_counts_on_from_what_was_noted_last(tmp_path, hands):
    parts = {}
    clock = Clock(tmp_path / "clock.json", parts=parts)
    hands.cpu, hands.wall = 103.0, 504.0
    parts["mask_row"] = {"cpu_seconds": 1.0}
    clock.on_save(None, SimpleNamespace(is_world_process_zero=True), None)
    hands.cpu = 150.0  # lost: it is done again
    resumed = Clock(tmp_path / "clock.json")
    hands.cpu, hands.wall = 152.0, 507.0
    expected = {"mask_row": {"cpu_seconds": 1.0}, "cpu_seconds": 5.0, "wall_seconds": 7.0}
    assert resumed.seconds == expected
    resumed.save()
    assert read_clock(tmp_path / "clock.json") == expected
    assert Clock(tmp_path / "clock.json", resumed=False).seconds == {"cpu_seconds": 0.0, "wall_seconds": 0.0}


def test_other_processes_note_nothing(tmp_path, hands):
    Clock(tmp_path / "clock.json").on_save(None, SimpleNamespace(is_world_process_zero=False), None)
    assert read_clock(tmp_path / "clock.json") == {}
