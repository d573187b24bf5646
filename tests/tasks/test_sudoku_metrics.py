import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rm.tasks.sudoku import (
    conflict_cells,
    corrupt_boards,
    generate_boards,
    parse_board,
    remask_recall_by_history,
    replay_cells,
    sudoku_metrics,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "sudoku_conflicts.json").read_text())


def test_conflict_vectors():
    boards = np.stack([parse_board(vector["board"]) for vector in VECTORS])
    assert conflict_cells(boards).tolist() == [vector["conflict_cells"] for vector in VECTORS]


def test_masks_never_conflict():
    assert conflict_cells([[0] * 81]).tolist() == [0]


def test_metrics_of_known_boards():
    target = generate_boards(10, seed=1)
    final = target.copy()
    final[0, 0] = target[0, 0] % 9 + 1  # one wrong digit
    final[1] = generate_boards(1, seed=2)[0]  # valid, but another board
    result = sudoku_metrics(corrupt_boards(target, np.random.default_rng(0)), final, target)
    assert result["exact_accuracy"] == 0.8
    assert result["valid_rate"] == 0.9
    assert result["conflict_cells"] == conflict_cells(final).sum() / 10 > 0
    assert 0.4 < result["exact_accuracy_low"] < 0.8 < result["exact_accuracy_high"] < 1
    assert result["conflict_cells_low"] < result["conflict_cells"] < result["conflict_cells_high"]
    assert result["initial_errors"] >= 4 and result["boards"] == 10
    assert "replay_mistake" not in result


def test_metrics_take_tensors():
    torch = pytest.importorskip("torch")
    target = torch.from_numpy(generate_boards(3, seed=1)).long()
    result = sudoku_metrics(target, target, target, states=torch.stack([target, target]))
    assert result["exact_accuracy"] == 1.0
    assert math.isnan(result["replay_mistake"]) and result["remasked_cells"] == 0


def one_cell(*path):
    """Give the trajectory (S + 1, 1, 1) of one cell whose right digit is 9."""
    return np.array(path).reshape(-1, 1, 1), np.array([[9]])


@pytest.mark.parametrize(
    ("path", "remasked", "replayed"),
    [
        ((3, 0, 3), 1, 1),  # back to the same mistake
        ((3, 0, 0, 3, 3), 1, 1),
        ((3, 0, 9), 1, 0),  # corrected
        ((3, 0, 4), 1, 0),  # another mistake is no replay
        ((3, 0, 4, 0, 3), 1, 1),  # later, after another mistake
        ((3, 0, 3, 0, 3), 1, 1),  # a cell counts once
        ((3, 0, 3, 0, 9), 1, 1),  # though corrected in the end
        ((3, 3, 3), 0, 0),  # never re-masked
        ((9, 0, 3), 0, 0),  # was right when it was re-masked
        ((9, 0, 9), 0, 0),
        ((0, 3, 0, 3), 1, 1),  # an own mistake counts too
        ((3, 0), 1, 0),
    ],
)
def test_replay_by_hand(path, remasked, replayed):
    counts = replay_cells(*one_cell(*path))
    assert [int(c[0]) for c in counts] == [remasked, replayed]


def replay_by_loops(path, right):
    """Follow one cell through its trajectory with sets."""
    given_up, replayed = set(), False
    for before, after in zip(path[:-1], path[1:]):
        if before != 0 and after == 0 and before != right:
            given_up.add(before)
        if before == 0 and after != 0 and after in given_up:
            replayed = True
    return bool(given_up), replayed


@settings(max_examples=200)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 9))
def test_replay_agrees_with_following_each_cell(path, right):
    remasked, replayed = replay_cells(np.array(path).reshape(-1, 1, 1), np.array([[right]]))
    assert (bool(remasked[0]), bool(replayed[0])) == replay_by_loops(path, right)


def test_replay_rate_is_over_cells_of_all_boards():
    target = generate_boards(2, seed=3)
    states = np.repeat(target[None], 4, axis=0)
    wrong = target % 9 + 1
    states[0, :, :3], states[1, :, :3] = wrong[:, :3], 0  # three mistakes a board, all re-masked
    states[2:, 0, 0] = wrong[0, 0]  # one of the six comes back
    result = sudoku_metrics(states[0], states[-1], target, states=states)
    assert result["remasked_cells"] == 6 and result["replay_mistake"] == pytest.approx(1 / 6)
    assert result["replay_mistake_low"] < 1 / 6 < result["replay_mistake_high"]


def test_metrics_refuse_what_does_not_belong_together():
    board = generate_boards(2, seed=4)
    with pytest.raises(ValueError, match="shapes"):
        sudoku_metrics(board[:1], board, board)
    with pytest.raises(ValueError, match="states has shape"):
        sudoku_metrics(board, board, board, states=board)
    with pytest.raises(ValueError, match="states does not"):
        sudoku_metrics(board, board, board, states=np.stack([board, board[::-1]]))
    with pytest.raises(ValueError, match="final has shape"):
        sudoku_metrics(board, board[:, :80], board)


def recall(path, actions, **kwargs):
    states, target = one_cell(*path)
    result = remask_recall_by_history(states, np.array(actions).reshape(-1, 1, 1), target, **kwargs)
    return {name: (row["recall"], row["count"]) for name, row in result.items() if row["count"]}


def test_recall_classes_by_hand():
    assert recall((3, 0), [2]) == {"since_start": (1.0, 1)}
    assert recall((3, 3, 0), [0, 2]) == {"since_start": (0.5, 2)}
    assert recall((0, 3, 3, 0), [1, 0, 2]) == {"revealed_once": (0.5, 2)}
    assert recall((0, 3, 0, 4, 4), [1, 2, 1, 0]) == {"revealed_once": (1.0, 1), "second_attempt": (0.0, 1)}
    assert recall((3, 0, 4, 4), [2, 1, 0]) == {"since_start": (1.0, 1), "revealed_once": (0.0, 1)}
    assert recall((9, 9), [0]) == {}  # right tokens are not asked about
    assert recall((0, 0), [0]) == {}  # nor masks


def test_a_draft_can_count_as_the_first_attempt():
    assert recall((3, 0, 4, 4), [2, 1, 0], draft_is_attempt=True) == {
        "since_start": (1.0, 1),
        "second_attempt": (0.0, 1),
    }
    assert recall((0, 3, 3), [1, 0], draft_is_attempt=True) == {"revealed_once": (0.0, 1)}


def test_a_replacement_is_no_reveal():
    assert recall((3, 4, 0), [3, 2]) == {"since_start": (0.5, 2)}
    assert recall((9, 4, 0), [3, 2]) == {"replaced": (1.0, 1)}


def test_a_stubborn_mistake_counts_once_where_only_the_first_step_counts():
    first = {"first_only": True}
    assert recall((3, 3, 3, 0), [0, 0, 2]) == {"since_start": (1 / 3, 3)}
    assert recall((3, 3, 3, 0), [0, 0, 2], **first) == {"since_start": (0.0, 1)}
    assert recall((3, 0, 3, 0), [2, 1, 2], **first) == {"since_start": (1.0, 1)}  # the same one again
    assert recall((3, 0, 4, 0), [2, 1, 2], **first) == {"since_start": (1.0, 1), "revealed_once": (1.0, 1)}
    assert recall((9, 0, 4, 4), [2, 1, 0], **first) == {"revealed_once": (0.0, 1)}


@settings(max_examples=100)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=12))
def test_first_meetings_are_as_many_as_there_are_wrong_tokens(path):
    states, target = one_cell(*path)
    actions = np.zeros((len(path) - 1, 1, 1), dtype=np.int8)
    rows = remask_recall_by_history(states, actions, target, first_only=True).values()
    assert sum(row["count"] for row in rows) == len({*path[:-1]} - {0, 9})


def test_padded_steps_do_not_count():
    assert recall((3, 3, 3, 3), [0, 0, 0], num_steps=[1]) == {"since_start": (0.0, 1)}
    assert recall((3, 3), [0], num_steps=[0]) == {}
    with pytest.raises(ValueError, match="num_steps"):
        recall((3, 3), [0], num_steps=[2])
    with pytest.raises(ValueError, match="num_steps"):
        recall((3, 3), [0], num_steps=[1, 1])


@settings(max_examples=100)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=10))
def test_each_visible_mistake_is_in_exactly_one_class(path):
    states, target = one_cell(*path)
    actions = np.zeros((len(path) - 1, 1, 1), dtype=np.int8)
    for draft in (False, True):
        rows = remask_recall_by_history(states, actions, target, draft_is_attempt=draft).values()
        assert sum(row["count"] for row in rows) == sum(token not in (0, 9) for token in path[:-1])


def test_recall_refuses_actions_of_another_shape():
    states, target = one_cell(3, 3)
    with pytest.raises(ValueError, match="actions has shape"):
        remask_recall_by_history(states, np.zeros((2, 1, 1)), target)
