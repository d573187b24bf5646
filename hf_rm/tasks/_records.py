"""Reading records of a published schema from local JSON and JSONL files, and from the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

Problem = TypeVar("Problem", bound=Hashable)
HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.+-]*))?(?::(?P<split>[\w.\-\[\]%+]+))?")


def read_records(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """Read a JSONL file, a JSON list, every such file of a folder in the order of their names, or a data set's split.

    Args:
        path: File or folder; or, where there is none of that name, ``owner/name:config:split`` of a data set on the
            Hub (``openai/gsm8k:main:train``; ``owner/name::test`` without a config, ``train`` without a split;
            ``owner/name:one+two:test`` of two configs).

    Returns:
        (where the record is, for messages; the record).

    Raises:
        OSError: If there is no such file, or no record.
        ValueError: If a file is no JSON and no JSONL in UTF-8, or a record is no JSON object.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write('{"question": "1 + 1?"}'); file.flush()
        ...     [record for _, record in read_records(file.name)]
        [{'question': '1 + 1?'}]
    """
    hub = hub_name(path)
    if hub is not None:
        return _of_hub(str(path), hub["name"], hub["config"] or None, hub["split"] or "train")
    path = Path(path)
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
    records = [record for file in files for record in _of_file(file)]
    if not records:
        raise OSError(f"{path} holds no record; pass a .jsonl or .json file of the data set, or a folder of them.")
    return records


def hub_name(path: str | Path) -> re.Match[str] | None:
    """What stands for a data set on the Hub, in its parts; None for what is a file here, or is called like one."""
    here = Path(path).exists() or Path(path).suffix in (".json", ".jsonl")
    return None if here else HUB_NAME.fullmatch(str(path))


def _of_hub(source: str, name: str, configs: str | None, split: str) -> list[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset

    rows: list[Any] = []
    try:
        for config in (None,) if configs is None else configs.split("+"):
            rows += load_dataset(name, config, split=split)
    except (OSError, ValueError) as error:
        raise OSError(f"{source} is no file here, and as a data set of the Hub it cannot be read: {error}") from error
    return [(f"{source}, record {number}", dict(row)) for number, row in enumerate(rows, 1)]


def named_sources(given: Sequence[str], argument: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Data named by what they are, ``task=data``.

    Args:
        given: Such words.
        argument: Whose they are, for the message.
        names: The tasks that there are.

    Returns:
        Pairs of task and data.

    Raises:
        ValueError: For a word without a known task, or without data.

    Example:
        >>> named_sources(["cmath=data/cmath.jsonl"], "more_tests", ["gsm8k", "cmath"])
        [('cmath', 'data/cmath.jsonl')]
    """
    pairs = [tuple(map(str.strip, word.partition("=")[::2])) for word in given]
    for word, (name, source) in zip(given, pairs, strict=True):
        if name not in names or not source:
            raise ValueError(f"`{argument}` has {word!r}: pass task=data, the task one of {', '.join(names)}.")
    return [(name, source) for name, source in pairs]


def _of_file(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is no text in UTF-8 ({error.reason} at byte {error.start}): pass JSON or JSONL, unpacked; other "
            "formats have to be converted."
        ) from error
    for number, row in _rows(file, text):
        if not isinstance(row, dict):
            raise ValueError(f"{file}, record {number} is no JSON object but {type(row).__name__}.")
        yield f"{file.name}, record {number}", row


def _rows(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The records of a JSON list by their numbers, or of JSONL by their lines."""
    try:
        if text.lstrip().startswith("["):
            yield from enumerate(json.loads(text), 1)
            return
        # Not splitlines(): a record may hold other line separators inside its strings.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _of_line(number, line)
    except ValueError as error:
        raise ValueError(f"{file} is neither JSONL nor a JSON list: {error}") from error


def _of_line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:  # which knows of one line alone
        raise ValueError(f"{error.msg}: line {number} column {error.colno}") from error


def column(record: dict[str, Any], where: str, *names: str) -> Any:
    """The first of `names` that a record has and that is not empty.

    Args:
        record: The record.
        where: Where it is, for the message.
        names: Columns that may hold the value, the usual name first.

    Returns:
        The value.

    Raises:
        ValueError: If none of them is there.
        BadRecordError: If it is empty.

    Example:
        >>> column({"prompt": "Add."}, "line 1", "text", "prompt")
        'Add.'
    """
    for name in names:
        if record.get(name) not in (None, "", []):
            return record[name]
    present = [name for name in names if name in record]
    if present:
        raise BadRecordError(f"{where} has an empty {present[0]!r}; its columns are {sorted(record)}.")
    raise ValueError(f"{where} has no column {' or '.join(map(repr, names))}; its columns are {sorted(record)}.")


class BadRecordError(ValueError):
    """A record that cannot be used, in a file of the right columns: a field is empty, or its answer unreadable."""


def read_each(
    path: str | Path, read: Callable[[str, dict[str, Any]], Problem], left_out: list[str] | None = None
) -> list[Problem]:
    """What `read` makes of each record of a source.

    Args:
        path: As for [`read_records`].
        read: Makes a problem of where a record is and the record.
        left_out: Gets a message for every record that cannot be used, which is left out. Without it that is an error.

    Returns:
        The problems, in order.

    Raises:
        OSError: As [`read_records`].
        ValueError: For a missing column, a record that cannot be used where `left_out` is None, or if none can.

    Example:
        >>> import tempfile
        >>> left_out = []
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write('{"text": "Add."}\\n{"text": ""}'); file.flush()
        ...     read_each(file.name, lambda where, record: column(record, where, "text"), left_out), len(left_out)
        (['Add.'], 1)
    """
    problems, bad = [], []
    records = read_records(path)
    for where, record in records:
        try:
            problems.append(read(where, record))
        except BadRecordError as error:
            if left_out is None:
                raise
            bad.append(str(error))
    if not problems:
        raise ValueError(f"none of the {len(records):,} records of {path} can be used: {bad[0]}")
    if left_out is not None:
        left_out += bad
    return problems


def read_told(source: str, read: Callable[..., list[Problem]], remarks: list[str]) -> list[Problem]:
    """What a reader makes of a source, once each; what it leaves out is counted and named in `remarks`.

    Args:
        source: As for [`read_records`].
        read: A reader of this package, which takes `left_out`.
        remarks: Gets a line where records were left out, and one where there were duplicates.

    Returns:
        The problems, in order.

    Raises:
        OSError, ValueError: As the reader.
    """
    left_out: list[str] = []
    problems = read(source, left_out=left_out)
    if left_out:
        more = f" (and {len(left_out) - 3} more)" if len(left_out) > 3 else ""
        count = f"{len(left_out):,} of {len(left_out) + len(problems):,} records"
        remarks.append(f"{source}: {count} left out: {' '.join(left_out[:3])}{more}")
    once = list(dict.fromkeys(problems))
    if len(once) < len(problems):
        remarks.append(f"{source}: {len(problems) - len(once):,} duplicates dropped")
    return once
