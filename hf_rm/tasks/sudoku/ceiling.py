"""The ceiling of exact accuracy on Sudoku revision: what a perfect decoder of the corrupted board can reach.

All sets of wrong cells of one size, and all wrong digits, are equally likely. Fewer wrong cells explain a corrupted
board better (there are fewer ways to choose them), so a maximum a posteriori decoder answers with a valid board at the
smallest Hamming distance. Where several are closest it cannot know which was meant; a fair choice is right with
probability 1 / number. (It is not told that at least four cells are wrong; that could only matter where another board
lies closer than four.)

Exactness rests on an exact solver (CP-SAT, one worker, no time limit): either it lists every valid board within a
distance and proves that there is no further one, or the result says that its limit was hit.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hf_rm.evaluation.statistics import Interval, mean_interval, wilson_interval

from .boards import CELLS, MASK_ID, UNITS, BoardArray, as_boards, is_valid
from .evaluation_set import Source, evaluation_set

DEFAULT_LIMIT = 1000


@dataclass(frozen=True)
class CeilingResult:
    """The valid boards closest to one corrupted board.

    Attributes:
        distance: The smallest Hamming distance to a valid board; a mask counts as a difference.
        boards: The valid boards at this distance in lexicographic order, uint8 of shape (number, 81).
        complete: Whether these are proven to be all. False: the limit was hit and there are more.

    Example:
        >>> CeilingResult(0, np.zeros((1, 81), dtype=np.uint8), True).distance
        0
    """

    distance: int
    boards: BoardArray
    complete: bool


@dataclass(frozen=True)
class CeilingTable:
    """The ceiling of each board of an evaluation set; every array has shape (B,).

    Attributes:
        distance: Smallest distance from the corrupted board to a valid board.
        closest: Number of valid boards at this distance (a lower bound where not `complete`).
        contains_target: Whether the original is one of them.
        credit: Probability that a fair choice among them is the original, 1 / number or 0 (an upper bound where not
            `complete`).
        unique: Whether the original is the only one.
        complete: Whether the list of closest boards is proven complete.
        seconds: Time the search took, without the start of a worker.
        digest: SHA-256 of the corrupted boards and the originals: tells whether two results speak of the same boards.
        settings: What the table was made with.

    Example:
        >>> true, one = np.array([True]), np.array([1])
        >>> CeilingTable(one, one, true, one / 1, true, true, one / 1, "", {}).summary()["uniquely_decodable"].value
        1.0
    """

    distance: npt.NDArray[np.int64]
    closest: npt.NDArray[np.int64]
    contains_target: npt.NDArray[np.bool_]
    credit: npt.NDArray[np.float64]
    unique: npt.NDArray[np.bool_]
    complete: npt.NDArray[np.bool_]
    seconds: npt.NDArray[np.float64]
    digest: str
    settings: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Interval]:
        """Give the shares that bound a model's exact accuracy, each with its 95 % interval.

        Returns:
            ``exact_ceiling`` (mean credit: the expected exact accuracy of an ideal decoder that breaks ties fairly),
            ``uniquely_decodable`` (the original is the only closest board) and ``target_among_closest``.

        Example:
            >>> true, two = np.array([True]), np.array([2])
            >>> table = CeilingTable(two, two, true, 1 / two, ~true, true, 1 / two, "", {})
            >>> table.summary()["exact_ceiling"].value
            0.5
        """
        return {
            "exact_ceiling": mean_interval(self.credit),
            "uniquely_decodable": wilson_interval(int(self.unique.sum()), len(self.unique)),
            "target_among_closest": wilson_interval(int(self.contains_target.sum()), len(self.contains_target)),
        }


_ARRAYS = ("distance", "closest", "contains_target", "credit", "unique", "complete", "seconds")


def _cp_model() -> Any:
    """Import the solver only where it is used: no other part of the task needs it."""
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise ImportError(
            "The Sudoku ceiling needs the solver library ortools, which is not installed; `pip install hf-rm[sudoku]`."
        ) from error
    return cp_model


@cache
def _rules() -> tuple[Any, list[list[Any]]]:
    """Build the model of a valid board once, with the literals "cell holds digit", 81 lists of nine."""
    model = _cp_model().CpModel()
    holds = [[model.new_bool_var("") for _ in range(9)] for _ in range(CELLS)]
    for cell in holds:
        model.add_exactly_one(cell)
    for unit in UNITS.tolist():
        for digit in range(9):
            model.add_exactly_one(holds[cell][digit] for cell in unit)
    return model, holds


def _problem(corrupted: BoardArray) -> tuple[Any, list[Any]]:
    """Copy the rules and give the literals "this cell keeps its digit" (none for a mask).

    A literal is an index to the solver and serves in copies too; asking each copy for its own took half of the time.
    """
    rules, holds = _rules()
    model = rules.clone()
    kept = [holds[cell][int(digit) - 1] for cell, digit in enumerate(corrupted) if digit != MASK_ID]
    for literal in kept:
        model.add_hint(literal, True)
    return model, kept


def _solver() -> Any:
    solver = _cp_model().CpSolver()
    solver.parameters.num_workers = 1
    # Both searches cost more than they save on a problem this small.
    solver.parameters.symmetry_level = 0
    solver.parameters.cp_model_probing_level = 0
    return solver


def _smallest_distance(corrupted: BoardArray) -> int:
    model, kept = _problem(corrupted)
    model.maximize(_cp_model().LinearExpr.sum(kept))
    solver = _solver()
    status = solver.solve(model)
    if status != _cp_model().OPTIMAL:
        raise RuntimeError(f"The solver ended with {solver.status_name(status)} on an always feasible problem.")
    return CELLS - int(solver.objective_value + 0.5)


@cache
def _collector_class() -> Any:
    """Define the solution callback; its base class only exists once the solver library is imported."""

    class Collector(_cp_model().CpSolverSolutionCallback):  # type: ignore[misc]  # a base class made by a call
        """Collects up to `limit` boards and stops the search at one more."""

        def __init__(self, limit: int) -> None:
            super().__init__()
            self.limit = limit
            self.overflow = False
            self.found: list[npt.NDArray[np.uint8]] = []

        def on_solution_callback(self) -> None:
            if len(self.found) >= self.limit:
                self.overflow = True
                self.stop_search()
                return
            _, holds = _rules()
            board = [[self.boolean_value(literal) for literal in cell].index(True) + 1 for cell in holds]
            self.found.append(np.array(board, dtype=np.uint8))

    return Collector


def _boards_within(corrupted: BoardArray, distance: int, limit: int) -> tuple[BoardArray, bool]:
    """List the valid boards within a distance, and tell whether the list is proven complete."""
    model, kept = _problem(corrupted)
    model.add(_cp_model().LinearExpr.sum(kept) >= CELLS - distance)
    solver = _solver()
    solver.parameters.enumerate_all_solutions = True
    collector = _collector_class()(limit)
    status = solver.solve(model, collector)
    # OPTIMAL (or INFEASIBLE, with none) says that the whole space was searched. A search that was stopped at its
    # very last board says so too, hence the collector's own word.
    complete = status in (_cp_model().OPTIMAL, _cp_model().INFEASIBLE) and not collector.overflow
    boards = np.array(collector.found, dtype=np.uint8).reshape(-1, CELLS)
    return boards[np.lexsort(boards.T[::-1])], complete


def _closest(corrupted: BoardArray, limit: int, within: int | None) -> CeilingResult:
    if within is not None:
        boards, complete = _boards_within(corrupted, within, limit)
        if complete and len(boards) == 0:
            raise ValueError(f"within is {within}, but no valid board is that close; pass None or a larger distance.")
        if complete:
            distances = (boards != corrupted).sum(axis=1)
            return CeilingResult(int(distances.min()), boards[distances == distances.min()], True)
        # Too many boards within a loose bound: find the smallest distance first.
    distance = _smallest_distance(corrupted)
    boards, complete = _boards_within(corrupted, distance, limit)
    return CeilingResult(distance, boards, complete)


def closest_boards(corrupted: Any, limit: int = DEFAULT_LIMIT, within: int | None = None) -> CeilingResult:
    """Find all valid boards at the smallest Hamming distance from a corrupted board, exactly.

    Args:
        corrupted: One board, ids 0..9, shape (81,).
        limit: List at most this many boards; if there are more, the result's `complete` is False.
        within: A distance at which some valid board is known to lie (such as the original's). It saves the search for
            the smallest distance and changes nothing else.

    Returns:
        The smallest distance and the boards.

    Raises:
        ValueError: If `corrupted` is no board, `limit` is below 1, or no valid board lies within `within`.
        ImportError: If ortools is not installed.

    Example:
        >>> from hf_rm.tasks.sudoku import generate_boards
        >>> board = generate_boards(1, seed=0)[0]
        >>> result = closest_boards(board)
        >>> result.distance, len(result.boards), result.complete
        (0, 1, True)
    """
    boards = as_boards(corrupted, "corrupted")
    if len(boards) != 1:
        raise ValueError(f"corrupted holds {len(boards)} boards; pass one of shape ({CELLS},), or use map_ceiling.")
    if limit < 1:
        raise ValueError(f"limit is {limit}; pass at least 1.")
    return _closest(boards[0], limit, within)


class _Row(NamedTuple):
    distance: int
    found: int
    complete: bool
    seconds: float


def _row(job: tuple[BoardArray, BoardArray, int]) -> _Row:
    """Solve one board."""
    corrupted, target, limit = job
    start = time.perf_counter()
    result = _closest(corrupted, limit, within=int((corrupted != target).sum()))
    return _Row(result.distance, len(result.boards), result.complete, time.perf_counter() - start)


def _rows(jobs: list[tuple[BoardArray, BoardArray, int]], processes: int) -> Iterator[_Row]:
    if processes == 1:
        yield from map(_row, jobs)
        return
    # Not "fork": the solver's and torch's threads do not survive it.
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(_row, jobs, chunksize=16)


def boards_digest(corrupted: Any, target: Any) -> str:
    """Fingerprint an evaluation set, so that a ceiling and a model's score are only compared on the same boards.

    Args:
        corrupted: Shape (B, 81).
        target: Shape (B, 81).

    Returns:
        A SHA-256 in hexadecimal.

    Raises:
        ValueError: If the shape or an id is out of range.

    Example:
        >>> len(boards_digest([[0] * 81], [[0] * 81]))
        64
    """
    pair = np.stack([as_boards(corrupted, "corrupted"), as_boards(target, "target")])
    return hashlib.sha256(pair.tobytes()).hexdigest()


def map_ceiling(
    corrupted: Any,
    target: Any,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
    limit: int = DEFAULT_LIMIT,
) -> CeilingTable:
    """Compute the ceiling of every board of an evaluation set.

    The originals only bound the search (no closest board can be farther away): the closest boards are what a decoder
    that does not know them would find.

    Args:
        corrupted: Corrupted boards, shape (B, 81).
        target: The solved boards they were made from, shape (B, 81).
        processes: Worker processes; with more than one, a script must guard its entry by
            ``if __name__ == "__main__"``.
        progress: Called as ``progress(done, total)`` after each board.
        limit: As in [`closest_boards`].

    Returns:
        One entry a board.

    Raises:
        ValueError: If shapes differ, a target is not a solved board, or `processes` or `limit` is below 1.
        ImportError: If ortools is not installed.

    Example:
        >>> from hf_rm.tasks.sudoku import generate_boards
        >>> board = generate_boards(1, seed=0)
        >>> bool(map_ceiling(board, board).unique[0])
        True
    """
    noisy, right = as_boards(corrupted, "corrupted"), as_boards(target, "target")
    if noisy.shape != right.shape:
        raise ValueError(f"corrupted has shape {noisy.shape} and target {right.shape}; pass the same boards in both.")
    if not is_valid(right).all():
        raise ValueError(f"target {int(is_valid(right).argmin())} is not a solved board; pass the original boards.")
    if processes < 1 or limit < 1:
        raise ValueError(f"processes is {processes} and limit {limit}; pass at least 1.")
    _cp_model()  # say that it is missing here, not in a worker
    rows: list[_Row] = []
    for row in _rows([(noisy[i], right[i], limit) for i in range(len(noisy))], processes):
        rows.append(row)
        if progress is not None:
            progress(len(rows), len(noisy))
    return _table(rows, noisy, right, limit)


def _table(rows: list[_Row], noisy: BoardArray, right: BoardArray, limit: int) -> CeilingTable:
    distance = np.array([row.distance for row in rows], dtype=np.int64)
    complete = np.array([row.complete for row in rows], dtype=bool)
    # The original is valid, so it is among the closest boards exactly if it is as close.
    contains = (noisy != right).sum(axis=1) == distance
    at_least = np.array([row.found for row in rows], dtype=np.int64) + ~complete
    return CeilingTable(
        distance=distance,
        closest=at_least,
        contains_target=contains,
        credit=np.where(contains, 1.0 / at_least, 0.0),
        unique=contains & (at_least == 1),
        complete=complete,
        seconds=np.array([row.seconds for row in rows], dtype=np.float64),
        digest=boards_digest(noisy, right),
        settings={"limit": limit},
    )


def save_ceiling(path: str | os.PathLike[str], table: CeilingTable) -> None:
    """Write a table as npz, whole or not at all (a temporary file is renamed when complete).

    Args:
        path: The file; its folder must exist.
        table: What [`map_ceiling`] returned.

    Raises:
        OSError: If the file cannot be written.

    Example:
        >>> true, one = np.array([True]), np.array([1])
        >>> file = os.path.join(tempfile.mkdtemp(), "ceiling.npz")
        >>> save_ceiling(file, CeilingTable(one, one, true, one / 1, true, true, one / 1, "", {"seed": 1}))
        >>> load_ceiling(file).settings["seed"]
        1
    """
    file = Path(path)
    arrays: dict[str, Any] = {name: getattr(table, name) for name in _ARRAYS}
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(stream, digest=table.digest, settings=json.dumps(table.settings), **arrays)
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def load_ceiling(path: str | os.PathLike[str]) -> CeilingTable:
    """Read a table that [`save_ceiling`] or the ceiling benchmark wrote.

    Args:
        path: The npz file.

    Returns:
        The table.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not such a table.

    Example:
        >>> true, one = np.array([True]), np.array([1])
        >>> file = os.path.join(tempfile.mkdtemp(), "ceiling.npz")
        >>> save_ceiling(file, CeilingTable(one, one, true, one / 1, true, true, one / 1, "abc", {}))
        >>> load_ceiling(file).digest
        'abc'
    """
    with np.load(path, allow_pickle=False) as data:
        missing = sorted({f.name for f in fields(CeilingTable)} - set(data.files))
        if missing:
            raise ValueError(f"path {os.fspath(path)!r} lacks {missing}; pass a file that save_ceiling wrote.")
        arrays = {name: data[name] for name in _ARRAYS}
        return CeilingTable(**arrays, digest=str(data["digest"]), settings=json.loads(str(data["settings"])))


def find_ceiling(folder: str | os.PathLike[str], source: Source, count: int, seed: int) -> CeilingTable | None:
    """Find the saved ceiling of an evaluation set, or that of a larger one that begins with it.

    Args:
        folder: Where the ceiling benchmark left its files.
        source: As in [`evaluation_set`].
        count: As in [`evaluation_set`].
        seed: As in [`evaluation_set`].

    Returns:
        The table, whose first `count` entries are those of the set; None if none speaks of these very boards.

    Example:
        >>> find_ceiling(tempfile.mkdtemp(), "generated", 10, seed=0) is None
        True
    """
    for path in sorted(Path(folder).glob("*.npz")):
        table = load_ceiling(path)
        same = table.settings.get("source") == source and table.settings.get("seed") == seed
        if same and len(table.credit) >= count:
            if table.digest == boards_digest(*evaluation_set(source, len(table.credit), seed)):
                return table
    return None
