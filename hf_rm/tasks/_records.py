"""Reading records of a published schema from local JSON and JSONL files, and from the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]*))?(?::(?P<split>[\w.\-\[\]%+]+))?")


def read_records(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """Read a JSONL file, a JSON list, every such file of a folder in the order of their names, or a data set's split.

    Args:
        path: File or folder; or, where there is none of that name, ``owner/name:config:split`` of a data set on the
            Hub (``openai/gsm8k:main:train``; ``owner/name::test`` without a config, ``train`` without a split).

    Returns:
        (where the record is, for messages; the record).

    Raises:
        OSError: If there is no such file, or no record.
        ValueError: If a record is no JSON object.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write('{"question": "1 + 1?"}'); file.flush()
        ...     [record for _, record in read_records(file.name)]
        [{'question': '1 + 1?'}]
    """
    hub = HUB_NAME.fullmatch(str(path))
    if hub is not None and not Path(path).exists() and Path(path).suffix not in (".json", ".jsonl"):
        return _of_hub(str(path), hub["name"], hub["config"] or None, hub["split"] or "train")
    path = Path(path)
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
    records = [record for file in files for record in _of_file(file)]
    if not records:
        raise OSError(f"{path} holds no record; pass a .jsonl or .json file of the data set, or a folder of them.")
    return records


def _of_hub(source: str, name: str, config: str | None, split: str) -> list[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, config, split=split)
    except (OSError, ValueError) as error:
        raise OSError(f"{source} is no file here, and as a data set of the Hub it cannot be read: {error}") from error
    return [(f"{source}, record {number}", dict(row)) for number, row in enumerate(rows, 1)]


def _of_file(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = file.read_text(encoding="utf-8")
    try:
        if text.lstrip().startswith("["):
            rows = list(enumerate(json.loads(text), 1))
        else:
            # Not splitlines(): a record may hold other line separators inside its strings.
            rows = [(number, json.loads(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    except ValueError as error:
        raise ValueError(f"{file} is neither JSONL nor a JSON list: {error}") from error
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{file}, record {number} is no JSON object but {type(row).__name__}.")
        yield f"{file.name}, record {number}", row


def column(record: dict[str, Any], where: str, *names: str) -> Any:
    """The first of `names` that a record has and that is not empty.

    Args:
        record: The record.
        where: Where it is, for the message.
        names: Columns that may hold the value, the usual name first.

    Returns:
        The value.

    Raises:
        ValueError: If none of them is there, or it is empty.

    Example:
        >>> column({"prompt": "Add."}, "line 1", "text", "prompt")
        'Add.'
    """
    for name in names:
        if record.get(name) not in (None, "", []):
            return record[name]
    present = [name for name in names if name in record]
    fault = f"an empty {present[0]!r}" if present else f"no column {' or '.join(map(repr, names))}"
    raise ValueError(f"{where} has {fault}; its columns are {sorted(record)}.")
