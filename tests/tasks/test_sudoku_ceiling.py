import builtins
import importlib.util
import itertools
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from hf_rm.tasks.sudoku import (
    CeilingTable,
    boards_digest,
    closest_boards,
    corrupt_boards,
    evaluation_set,
    find_ceiling,
    generate_boards,
    is_valid,
    load_ceiling,
    map_ceiling,
    save_ceiling,
)
from hf_rm.tasks.sudoku import boards as boards_module
from hf_rm.tasks.sudoku import ceiling as ceiling_module

pytest.importorskip("ortools")


@cache
def permutations():
    return np.array(list(itertools.permutations(range(1, 10))), dtype=np.uint8)


def valid_boards_within(corrupted, distance):
    """List every valid board within a distance by trying permutations row by row; shares nothing with the solver."""
    rows = corrupted.reshape(9, 9)
    cost = [(permutations() != row).sum(axis=1) for row in rows]
    rest = np.cumsum([0] + [int(c.min()) for c in cost[::-1]])[::-1]  # what rows r.. cost at least
    slack = distance - rest[0]
    options = [permutations()[c <= c.min() + slack] for c in cost]
    costs = [c[c <= c.min() + slack] for c in cost]
    found = []

    def extend(r, above, spent):
        if r == 9:
            found.append(np.concatenate(above))
            return
        fits = costs[r] + spent + rest[r + 1] <= distance
        for other in above:
            fits &= (options[r] != other).all(axis=1)
        for other in above[3 * (r // 3) :]:
            for box in range(0, 9, 3):
                fits &= ~np.isin(options[r][:, box : box + 3], other[box : box + 3]).any(axis=1)
        for i in np.flatnonzero(fits):
            extend(r + 1, [*above, options[r][i]], spent + int(costs[r][i]))

    extend(0, [], 0)
    return np.array(sorted(board.tolist() for board in found), dtype=np.uint8).reshape(-1, 81)


def rectangle_of(board):
    for corners in boards_module._RECTANGLES:
        a, b, c, d = board[corners]
        if a == d and b == c:
            return corners
    raise AssertionError("a board without a rectangle: take another seed")


@pytest.mark.parametrize("index", range(8))
def test_closest_boards_agree_with_trying_every_permutation(index):
    target = generate_boards(8, seed=11, split="test")[index : index + 1]
    wrong = corrupt_boards(target, np.random.default_rng(index), 3, 7)[0]
    within = valid_boards_within(wrong, int((wrong != target[0]).sum()))
    distances = (within != wrong).sum(axis=1)
    expected = within[distances == distances.min()]
    for bound in (None, int((wrong != target[0]).sum())):
        result = closest_boards(wrong, within=bound)
        assert result.complete and result.distance == distances.min()
        assert np.array_equal(result.boards, expected)


def test_half_a_swapped_rectangle_has_exactly_two_closest_boards():
    target = generate_boards(1, seed=5)[0]
    corners = rectangle_of(target)
    other = target.copy()
    other[corners] = other[corners[[1, 0, 3, 2]]]
    half = target.copy()
    half[corners[:2]] = other[corners[:2]]  # equally far from both
    result = closest_boards(half)
    assert result.distance == 2 and result.complete
    assert {board.tobytes() for board in result.boards} == {target.tobytes(), other.tobytes()}
    table = map_ceiling(half[None], target[None])
    assert table.credit.tolist() == [0.5] and not table.unique[0] and table.contains_target[0]
    # Three of the four cells swapped: the other board is closer, and the original out of reach.
    most = other.copy()
    most[corners[0]] = target[corners[0]]
    table = map_ceiling(most[None], target[None])
    assert table.distance.tolist() == [1] and table.credit.tolist() == [0.0] and not table.contains_target[0]


def test_a_solved_board_is_its_own_closest_board():
    board = generate_boards(1, seed=6)
    table = map_ceiling(board, board)
    assert (table.distance[0], table.closest[0], table.credit[0], bool(table.unique[0])) == (0, 1, 1.0, True)


def test_the_limit_is_reported_and_never_taken_for_a_proof():
    target = generate_boards(1, seed=5)[0]
    half = target.copy()
    corners = rectangle_of(target)[:2]
    half[corners] = half[corners[::-1]]
    assert closest_boards(half, limit=2).complete
    cut = closest_boards(half, limit=1)
    assert not cut.complete and len(cut.boards) == 1 and cut.distance == 2
    table = map_ceiling(half[None], target[None], limit=1)
    assert not table.complete[0] and table.closest[0] == 2 and not table.unique[0] and table.credit[0] == 0.5
    empty = closest_boards(np.zeros(81, dtype=np.uint8), limit=3)
    assert empty.distance == 81 and not empty.complete and is_valid(empty.boards).all() and len(empty.boards) == 3


def test_a_bound_too_loose_for_the_limit_does_not_change_the_answer():
    target = generate_boards(1, seed=7)[0]
    wrong = corrupt_boards(target, np.random.default_rng(0), 4, 4)[0]
    tight, loose = closest_boards(wrong), closest_boards(wrong, limit=5, within=30)
    assert tight.distance == loose.distance and loose.complete and np.array_equal(tight.boards, loose.boards)


def test_table_keeps_its_promises_and_survives_the_disk(tmp_path):
    corrupted, target = evaluation_set("generated", 12, seed=1)
    calls = []
    table = map_ceiling(corrupted, target, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 12) for i in range(1, 13)]
    assert table.complete.all() and (table.distance <= (corrupted != target).sum(axis=1)).all()
    assert np.array_equal(table.unique, table.contains_target & (table.closest == 1))
    assert np.array_equal(table.credit, table.contains_target / table.closest)
    assert table.summary()["exact_ceiling"].value == table.credit.mean()
    save_ceiling(tmp_path / "table.npz", table)
    assert [file.name for file in tmp_path.iterdir()] == ["table.npz"]
    loaded = load_ceiling(tmp_path / "table.npz")
    assert np.array_equal(loaded.credit, table.credit) and loaded.settings == table.settings
    assert loaded.digest == boards_digest(corrupted, target) != boards_digest(corrupted[::-1], target)


def test_a_saved_ceiling_is_found_for_its_boards_and_the_first_of_them(tmp_path):
    boards = evaluation_set("generated", 6, seed=9)
    ones, true = np.ones(6), np.ones(6, dtype=bool)
    settings = {"source": "generated", "seed": 9}
    table = CeilingTable(ones, ones, true, np.arange(6.0), true, true, ones, boards_digest(*boards), settings)
    save_ceiling(tmp_path / "ceiling.npz", table)
    for count in (4, 6):
        assert find_ceiling(tmp_path, "generated", count, seed=9).credit.tolist() == [0, 1, 2, 3, 4, 5]
    for source, count, seed in (("generated", 7, 9), ("real", 4, 9), ("generated", 4, 8)):
        assert find_ceiling(tmp_path, source, count, seed=seed) is None
    save_ceiling(tmp_path / "ceiling.npz", replace(table, digest="of other boards"))
    assert find_ceiling(tmp_path, "generated", 4, seed=9) is None


def test_a_failed_save_leaves_the_old_file_alone(tmp_path, monkeypatch):
    board = generate_boards(1, seed=0)
    table = map_ceiling(board, board)
    file = tmp_path / "table.npz"
    save_ceiling(file, table)
    before = file.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        save_ceiling(file, table)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_errors_name_the_argument(tmp_path):
    board = generate_boards(2, seed=0)
    wrong = corrupt_boards(board, np.random.default_rng(0), 4, 4)
    for call, word in (
        (lambda: closest_boards(board), "corrupted holds 2 boards"),
        (lambda: closest_boards(board[0], limit=0), "limit"),
        (lambda: closest_boards(wrong[0], within=1), "within is 1"),
        (lambda: map_ceiling(board, board[:1]), "same boards"),
        (lambda: map_ceiling(board, wrong), "not a solved board"),
        (lambda: map_ceiling(board, board, processes=0), "processes"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(ValueError, match="lacks"):
        load_ceiling(tmp_path / "other.npz")


def test_a_missing_solver_names_the_extra(monkeypatch):
    real_import = builtins.__import__

    def without_ortools(name, *args, **kwargs):
        if name.startswith("ortools"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    ceiling_module._rules.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_ortools)
    board = generate_boards(1, seed=0)
    with pytest.raises(ImportError, match=r"hf-rm\[sudoku\]"):
        map_ceiling(board, board)
    with pytest.raises(ImportError, match=r"hf-rm\[sudoku\]"):
        closest_boards(board[0])


def test_benchmark_resumes_only_with_the_same_settings(tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[2] / "benchmarks" / "sudoku_ceiling.py"
    monkeypatch.syspath_prepend(str(script.parent))
    spec = importlib.util.spec_from_file_location("sudoku_ceiling_benchmark", script)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    file = tmp_path / "out" / "ceiling.npz"
    lines = file.parent / "sudoku_ceiling.jsonl"

    def run(boards):
        monkeypatch.setattr(sys, "argv", ["sudoku_ceiling.py", "--boards", str(boards), "--output", str(file)])
        benchmark.main()
        return capsys.readouterr().out

    assert "exact_ceiling" in run(3)
    assert load_ceiling(file).settings["boards"] == 3 and len(lines.read_text().splitlines()) == 1
    assert "read from" in run(3) and len(lines.read_text().splitlines()) == 1
    assert "read from" not in run(4) and len(load_ceiling(file).credit) == 4
    entry = json.loads(lines.read_text().splitlines()[1])
    assert entry["boards"] == 4 and entry["ortools"] and "value" in entry["uniquely_decodable"]
