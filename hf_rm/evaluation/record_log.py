# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The file that a stopped evaluation goes on with, and the digests by which it knows another one's."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

RECORDS_FILE = "samples.jsonl"
Record = TypeVar("Record")


class RecordLog(Generic[Record]):
    """
    Records by key, in a file that is only appended to: a header with the run's fingerprint, then a line a record.

    Args:
        folder: Where the file is; None keeps the records in memory.
        make: Makes the fingerprint, a flat dict of strings and numbers.
        kind: The records' class: a dataclass with a `key`, of strings, numbers and flat tuples.

    Raises:
        ValueError: If the file is another run's, or damaged before its last line.

    Example:
        >>> from hf_rm.evaluation.text_records import TextRecord
        >>> log = RecordLog(None, dict, TextRecord)
        >>> log.add([TextRecord("1", "", "#### 5", True, 8, 0, 0, True, ())])
        >>> "1" in log, len(log)
        (True, 1)
    """

    def __init__(self, folder: str | Path | None, make: Callable[[], dict[str, Any]], kind: type[Record]) -> None:
        self.kind = kind
        self.records: dict[str, Record] = {}
        self.path = None if folder is None else Path(folder) / RECORDS_FILE
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mark = json.loads(json.dumps(make()))
        lines = self._whole_lines()
        if not lines:
            self._append([json.dumps({"fingerprint": mark})])
            return
        self._check(lines[0], mark)
        for number, line in enumerate(lines[1:], 2):
            record = self._record(line, number)
            self.records.setdefault(_key(record), record)

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def __getitem__(self, key: str) -> Record:
        return self.records[key]

    def __len__(self) -> int:
        return len(self.records)

    def add(self, records: Sequence[Record]) -> None:
        """Remember records, on the disk too."""
        if self.path is not None:
            self._append([json.dumps(asdict(record)) for record in records])  # type: ignore[call-overload]
        self.records |= {_key(record): record for record in records}

    def _append(self, lines: Sequence[str]) -> None:
        assert self.path is not None
        with self.path.open("ab") as file:
            file.write("".join(line + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def _whole_lines(self) -> list[bytes]:
        """The file's lines; what a stop left behind the last line break is cut off."""
        assert self.path is not None
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.truncate(self.path, end)
        return content[:end].split(b"\n")[:-1]

    def _check(self, line: bytes, mark: dict[str, Any]) -> None:
        try:
            found = json.loads(line)["fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} does not begin with a fingerprint: pass another folder.") from error
        differing = [name for name in {**found, **mark} if found.get(name) != mark.get(name)]
        if differing:
            shown = ", ".join(f"{name} ({found.get(name)!r} there, {mark.get(name)!r} now)" for name in differing)
            raise ValueError(
                f"{self.path} holds another evaluation, which differs in {shown}: pass another folder, or delete the "
                "file to evaluate again."
            )

    def _record(self, line: bytes, number: int) -> Record:
        try:
            values = json.loads(line)
            pairs: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
            return self.kind(**pairs)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path}, line {number}, is no record ({error}): delete the file to evaluate again."
            ) from error


def _key(record: Any) -> str:
    return str(record.key)


def weights_digest(model: Any) -> str:
    """A digest of a model's weights (adapters included) and settings."""
    digest = hashlib.blake2b(digest_size=16)
    settings = model.config.to_dict() if hasattr(model.config, "to_dict") else vars(model.config)
    passing = ("transformers_version", "_name_or_path", "_commit_hash", "architectures")  # change when it is saved
    digest.update(content_digest({name: settings[name] for name in sorted(settings) if name not in passing}).encode())
    if getattr(model, "_hf_peft_config_loaded", False):
        digest.update(repr(model.active_adapters()).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name}/{getattr(value, 'dtype', '')}/{tuple(getattr(value, 'shape', ()))}".encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def content_digest(value: Any) -> str:
    """A digest of anything that JSON can hold."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
