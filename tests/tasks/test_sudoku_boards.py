import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rm.tasks.sudoku import (
    CELLS,
    corrupt_boards,
    count_unavoidable_rectangles,
    evaluation_set,
    format_board,
    generate_boards,
    is_valid,
    load_boards,
    load_real_boards,
    parse_board,
)
from hf_rm.tasks.sudoku import boards as boards_module
from hf_rm.tasks.sudoku.boards import as_boards

PATTERN = "123456789456789123789123456234567891567891234891234567345678912678912345912345678"


@pytest.fixture(scope="module")
def boards():
    return generate_boards(2000, seed=0)


def rectangles_by_loops(board):
    """Count size-4 unavoidable sets cell by cell, straight from the definition."""
    grid, count = board.reshape(9, 9), 0
    for r1 in range(9):
        for r2 in range(r1 + 1, 9):
            for c1 in range(9):
                for c2 in range(c1 + 1, 9):
                    swapped = grid[r1, c1] == grid[r2, c2] and grid[r1, c2] == grid[r2, c1]
                    boxes = {(r // 3, c // 3) for r in (r1, r2) for c in (c1, c2)}
                    count += bool(swapped and len(boxes) == 2)
    return count


def test_generated_boards_are_valid_distinct_and_balanced(boards):
    assert boards.shape == (2000, 81) and boards.dtype == np.uint8
    assert is_valid(boards).all()
    assert len(np.unique(boards, axis=0)) == 2000
    # Each digit is equally likely in each cell: 222 expected, standard deviation 14.
    counts = np.stack([(boards == digit).sum(axis=0) for digit in range(1, 10)])
    assert 140 < counts.min() and counts.max() < 310


def test_generated_boards_have_unavoidable_rectangles_and_permuted_patterns_have_none(boards):
    counts = count_unavoidable_rectangles(boards)
    assert 9.5 < counts.mean() < 11.5
    assert counts[:5].tolist() == [rectangles_by_loops(board) for board in boards[:5]]
    pattern = np.repeat(parse_board(PATTERN)[None], 50, axis=0)
    permuted = boards_module._random_symmetries(pattern, np.random.default_rng(0))
    assert is_valid(permuted).all() and len(np.unique(permuted, axis=0)) == 50
    assert count_unavoidable_rectangles(permuted).max() == 0


def test_swapping_a_rectangle_gives_another_valid_board(boards):
    board = boards[0].copy()
    for corners in boards_module._RECTANGLES:
        a, b, c, d = board[corners]
        if a == d and b == c:
            board[corners] = b, a, d, c
            break
    assert is_valid(board)[0] and (board != boards[0]).sum() == 4


def test_generation_is_deterministic_and_its_beginning_does_not_depend_on_the_count(boards):
    assert np.array_equal(generate_boards(1500, seed=0), boards[:1500])
    assert not (generate_boards(200, seed=1) == boards[:200]).all(axis=1).any()
    assert generate_boards(0, seed=0).shape == (0, CELLS)


def test_boards_beyond_the_independent_fills_are_new_valid_symmetries(monkeypatch, boards):
    monkeypatch.setattr(boards_module, "MAX_INDEPENDENT_FILLS", 100)
    many = generate_boards(350, seed=0)
    assert np.array_equal(many[:100], boards[:100])
    assert is_valid(many).all() and len(np.unique(many, axis=0)) == 350
    counts = count_unavoidable_rectangles(many)
    assert np.array_equal(counts[100:200], counts[:100])  # a symmetry keeps them
    assert np.array_equal(generate_boards(120, seed=0), many[:120])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**21), st.integers(0, 2**21))
def test_training_and_test_streams_are_disjoint(seed_a, seed_b, chunk_a, chunk_b):
    train = boards_module._chunk_rng("train", seed_a, chunk_a).bit_generator.state["state"]
    test = boards_module._chunk_rng("test", seed_b, chunk_b).bit_generator.state["state"]
    assert train != test


def test_training_and_test_boards_differ(boards):
    test = generate_boards(2000, seed=0, split="test")
    assert len(np.unique(np.concatenate([boards, test]), axis=0)) == 4000


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [({"count": -1}, "count"), ({"seed": -1}, "seed"), ({"seed": 2**32}, "seed"), ({"split": "dev"}, "split")],
)
def test_generation_errors_name_the_argument(kwargs, word):
    with pytest.raises(ValueError, match=word):
        generate_boards(**({"count": 1, "seed": 0} | kwargs))


@given(st.lists(st.integers(0, 9), min_size=81, max_size=81), st.booleans())
def test_text_and_ids_are_inverse(ids, pretty):
    assert parse_board(format_board(ids, pretty=pretty)).tolist() == ids


def test_text_accepts_dots_and_zeros():
    assert np.array_equal(parse_board("." * 40 + "5" + "." * 40), parse_board("0" * 40 + "5" + "0" * 40))
    assert format_board(parse_board(PATTERN)) == PATTERN
    assert format_board(parse_board(PATTERN), pretty=True).splitlines()[0] == "1 2 3 | 4 5 6 | 7 8 9"


@pytest.mark.parametrize(
    ("text", "word"), [("1" * 80, "80 cells"), ("1" * 82, "82 cells"), ("x" * 81, "'x'"), ("-" * 81, "'-'")]
)
def test_bad_text_is_named(text, word):
    with pytest.raises(ValueError, match=word):
        parse_board(text)


@pytest.mark.parametrize("text", [None, b"1" * 81, [1] * 81, 5])
def test_what_is_no_text_is_named(text):
    with pytest.raises(ValueError, match="^text is .*; pass a string of 81 characters"):
        parse_board(text)


@pytest.mark.parametrize(
    ("boards", "message"),
    [
        ([[1.7] * 81], "boards holds 1.7; pass token ids, whole numbers from 0 to 9"),
        ([[1.0] * 80 + [math.nan]], "boards holds nan; pass"),
        ([[1.0] * 80 + [math.inf]], "boards holds ids from 1.0 to inf"),
        (torch.full((1, 81), 2.5), "boards holds 2.5"),
        ([[True] * 81], "boards has dtype bool; pass"),
        (torch.ones(1, 81, dtype=torch.bool), "boards has dtype bool"),
        ([["1"] * 81], "boards has dtype <U1"),
        ([[None] * 81], "boards has dtype object"),
        (np.ones((1, 81), dtype=complex), "boards has dtype complex128"),
    ],
)
def test_what_is_no_id_is_named(boards, message):
    for check in (as_boards, is_valid):
        with pytest.raises(ValueError, match=f"^{message}"):
            check(boards)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.uint64, np.float16, np.float64])
def test_whole_numbers_of_any_dtype_are_ids(dtype):
    ids = np.arange(81) % 10
    for boards in (ids.astype(dtype), ids.astype(dtype)[None], np.zeros((0, 81), dtype=dtype)):
        array = as_boards(boards)
        assert array.dtype == np.uint8 and np.array_equal(array, ids[None][: len(array)])


@pytest.mark.parametrize("ids", [[1] * 80, [10] * 81, [-1] * 81])
def test_bad_ids_are_named(ids):
    with pytest.raises(ValueError, match="ids"):
        format_board(ids)


def test_validity_needs_every_unit(boards):
    board = boards[:1].copy()
    masked, swapped = board.copy(), board.copy()
    masked[0, 40] = 0
    swapped[0, [0, 1]] = board[0, [1, 0]]  # the row and the box stay right, two columns do not
    rows_only = np.tile(np.arange(1, 10, dtype=np.uint8), 9)[None]
    assert is_valid(np.concatenate([board, masked, swapped, rows_only])).tolist() == [True, False, False, False]


def test_files_of_both_kinds_give_the_same_boards(tmp_path, boards):
    lines = [format_board(board) for board in boards[:3]]
    text, table = tmp_path / "boards.txt", tmp_path / "boards.csv"
    text.write_text("# three boards\n\n" + "\n".join(lines) + "\n")
    table.write_text("puzzle,solution\n" + "".join(f"{'0' * 81},{line}\n" for line in lines))
    assert np.array_equal(load_boards(text), boards[:3])
    assert np.array_equal(load_boards(table), boards[:3])


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "no board"),
        ("1" * 81, "not a solved board"),
        (f"a,b\n{PATTERN},{PATTERN}", "'solution'"),
        ("12", "2 cells"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, word):
    file = tmp_path / "boards.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=word):
        load_boards(file)


def test_real_boards_are_distinct_and_follow_another_law(boards):
    real = load_real_boards()
    assert real.shape == (2000, 81) and is_valid(real).all() and len(np.unique(real, axis=0)) == 2000
    # 17-clue puzzles need boards with few unavoidable sets.
    assert count_unavoidable_rectangles(real).mean() < count_unavoidable_rectangles(boards).mean() - 1


def test_corruption_replaces_the_asked_number_uniformly(boards):
    wrong = corrupt_boards(boards, np.random.default_rng(0))
    counts = (wrong != boards).sum(axis=1)
    assert wrong.min() == 1 and wrong.max() == 9
    frequencies = np.bincount(counts, minlength=21)[4:]
    assert counts.min() == 4 and counts.max() == 20
    assert frequencies.min() > 70 and frequencies.max() < 170  # 118 expected, standard deviation 11
    cells = (wrong != boards).sum(axis=0)
    assert cells.min() > 220 and cells.max() < 375  # 296 expected, standard deviation 16
    shift = (wrong.astype(int) - boards)[wrong != boards] % 9
    assert np.bincount(shift, minlength=9)[1:].min() > 2700  # eight wrong digits, 3000 expected each


def test_corruption_is_a_function_of_its_generator_and_keeps_its_input(boards):
    before = boards.copy()
    first = corrupt_boards(boards, np.random.default_rng(5))
    assert np.array_equal(first, corrupt_boards(boards, np.random.default_rng(5)))
    assert not np.array_equal(first, corrupt_boards(boards, np.random.default_rng(6)))
    assert np.array_equal(boards, before)
    assert np.array_equal(corrupt_boards(boards, np.random.default_rng(0), 0, 0), boards)


def test_corruption_errors(boards):
    rng = np.random.default_rng(0)
    for low, high in ((5, 4), (-1, 4), (4, 82)):
        with pytest.raises(ValueError, match="min_wrong"):
            corrupt_boards(boards, rng, low, high)
    with pytest.raises(ValueError, match="masked"):
        corrupt_boards([[0] * 81], rng)


@pytest.mark.parametrize("source", ["generated", "real"])
def test_a_small_evaluation_set_is_the_beginning_of_a_large_one(source):
    corrupted, target = evaluation_set(source, 1100, seed=3)
    few, few_targets = evaluation_set(source, 1030, seed=3)
    assert np.array_equal(corrupted[:1030], few) and np.array_equal(target[:1030], few_targets)
    counts = (corrupted != target).sum(axis=1)
    assert is_valid(target).all() and counts.min() == 4 and counts.max() == 20
    other, _ = evaluation_set(source, 100, seed=4)
    assert not (other == corrupted[:100]).all(axis=1).any()


def test_evaluation_set_errors():
    for arguments, word in ((("web", 1, 0), "source"), (("real", 2001, 0), "count"), (("real", 1, -1), "seed")):
        with pytest.raises(ValueError, match=word):
            evaluation_set(*arguments)
