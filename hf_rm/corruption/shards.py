# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
A folder of numbered shards that is whole, or says what is missing: what a long computation over a dataset leaves.

    cache.json                the fingerprint of what was computed; once all is there, the shards with their digests
    shard-00000.safetensors   the arrays of some rows, and the rows' keys

A file is written beside its place, flushed and renamed, so that a kill leaves no half. Which rows a shard holds does
not depend on the number of processes: another number of them goes on where the last ones stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from ..processes import processes

HEADER = "cache.json"
Arrays = dict[str, np.ndarray]


class ShardFolder:
    """
    Args:
        folder (`str` or `Path`): where the shards lie.

    Raises:
        OSError: from every method, for a file that is damaged or missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, number: int) -> Path:
        """Of a shard, whether it is there or not."""
        return self.folder / f"shard-{number:05d}.safetensors"

    def begin(self, fingerprint: Mapping[str, Any], write: bool = True) -> None:
        """
        Start, or go on with, the computation that `fingerprint` describes; one process alone should `write` that down.

        Raises:
            ValueError: for a folder that holds another one; it names the parts that differ.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / HEADER).exists():
            self.check(fingerprint)
        elif any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise ValueError(
                f"{self.folder} is not empty and has no {HEADER}: pass a new folder for the cache, or empty this one."
            )
        elif write:
            self._write_header({"fingerprint": dict(fingerprint), "shards": None})

    def header(self) -> dict[str, Any]:
        """What `cache.json` holds."""
        path = self.folder / HEADER
        if not path.exists():
            raise OSError(f"{self.folder} holds no cache: there is no {HEADER} in it.")
        try:
            header = json.loads(path.read_text(encoding="utf-8"))
            header["fingerprint"], header["shards"]
        except (ValueError, KeyError, TypeError) as error:
            raise OSError(f"{path} is damaged ({error}): delete {self.folder} and make the cache again.") from error
        return header

    def check(self, fingerprint: Mapping[str, Any]) -> None:
        """A ValueError that names the parts of the fingerprint in which the folder's own differs."""
        known, given = self.header()["fingerprint"], json.loads(json.dumps(dict(fingerprint)))
        parts = [name for name in {**known, **given} if known.get(name) != given.get(name)]
        if parts:
            told = "; ".join(f"`{name}` is {given.get(name)!r} and was {known.get(name)!r}" for name in parts)
            raise ValueError(
                f"the cache in {self.folder} is stale: {told}. Pass another folder, or delete this one to have it "
                "made again."
            )

    def write(self, number: int, arrays: Arrays, keys: list[int | str]) -> None:
        """A shard: arrays, and the keys of its rows in order."""
        names = json.dumps(keys, default=lambda key: key.item())  # numpy's integers
        _write(self.path(number), save(arrays, metadata={"keys": names}))

    def finish(self, count: int) -> None:
        """Note that all `count` shards are there, with their sizes and digests."""
        shards = [{"bytes": self.path(n).stat().st_size, "digest": file_digest(self.path(n))} for n in range(count)]
        self._write_header({**self.header(), "shards": shards})

    @property
    def is_whole(self) -> bool:
        """Whether all shards have been written."""
        return (self.folder / HEADER).exists() and self.header()["shards"] is not None

    def open(self) -> list[tuple[Arrays, list[int | str]]]:
        """
        Arrays (mapped from disk, not read) and row keys of all shards.

        Raises:
            ValueError: for a cache that was never finished.
        """
        shards = self.header()["shards"]
        if shards is None:
            raise ValueError(
                f"the cache in {self.folder} is not finished: run what makes it again, it goes on where it stopped."
            )
        for number, shard in enumerate(shards):
            self._check_file(number, shard)
        return [self.read(number) for number in range(len(shards))]

    def _check_file(self, number: int, shard: dict[str, Any]) -> None:
        path = self.path(number)
        again = f"Delete {self.folder} and make the cache again."
        if not path.exists():
            raise OSError(f"{path.name} of the cache in {self.folder} is missing. {again}")
        size = path.stat().st_size
        if size != shard["bytes"]:
            raise OSError(f"{path} is truncated: it has {size} bytes of {shard['bytes']}. {again}")
        if file_digest(path) != shard["digest"]:
            raise OSError(f"{path} is damaged: its digest is not the one that {HEADER} has. {again}")

    def read(self, number: int) -> tuple[Arrays, list[int | str]]:
        """A shard's arrays, mapped from disk, and its row keys."""
        path = self.path(number)
        try:
            with path.open("rb") as handle:
                length = int.from_bytes(handle.read(8), "little")
                header = json.loads(handle.read(length))
            keys = json.loads(header.pop("__metadata__")["keys"])
            arrays = {name: _map(path, 8 + length, about) for name, about in header.items()}
        except (ValueError, KeyError, TypeError) as error:
            raise OSError(f"{path} is damaged or truncated ({error}): delete it to have it made again.") from error
        return arrays, keys

    def _write_header(self, header: dict[str, Any]) -> None:
        _write(self.folder / HEADER, json.dumps(header, indent=2).encode())


def fill(
    folder: str | Path,
    fingerprint: Mapping[str, Any],
    rows: int,
    shard_rows: int,
    compute: Callable[[range], tuple[Arrays, list[int | str]]],
    on_shard: Callable[[], None] | None = None,
) -> ShardFolder:
    """
    Compute the shards that a folder still lacks, each process its share.

    Args:
        folder (`str` or `Path`): a folder that all processes see.
        fingerprint (`dict`): all that the result depends on.
        rows (`int`): rows of the data.
        shard_rows (`int`): rows of a shard.
        compute (`Callable`): row numbers to the arrays and the row keys of a shard.
        on_shard (`Callable`, *optional*): called after every shard that this process has written.

    Raises:
        ValueError: for a folder with another fingerprint.
        OSError: for damaged files.
    """
    state, store = processes(), ShardFolder(folder)
    fingerprint = {**fingerprint, "rows": rows, "shard_rows": shard_rows}
    store.begin(fingerprint, write=state.is_main_process)
    state.wait_for_everyone()
    store.check(fingerprint)
    if store.is_whole:
        store.open()  # raises where it is damaged
        return store
    count = -(-rows // shard_rows)
    for number in range(state.process_index, count, state.num_processes):
        if store.path(number).exists():
            store.read(number)  # raises where it is damaged
        else:
            store.write(number, *compute(range(number * shard_rows, min(rows, (number + 1) * shard_rows))))
            if on_shard is not None:
                on_shard()
    state.wait_for_everyone()
    if state.is_main_process:
        for left in store.folder.glob(".*.safetensors.*"):  # of a process that was killed
            left.unlink(missing_ok=True)
        store.finish(count)
    state.wait_for_everyone()
    return store


def _map(path: Path, begin: int, about: dict[str, Any]) -> np.ndarray:
    first, last = about["data_offsets"]
    dtype: Any = {"I32": np.int32, "I64": np.int64, "F16": np.float16, "U64": np.uint64}[about["dtype"]]
    if last == first:
        return np.empty(about["shape"], dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=begin + first, shape=tuple(about["shape"]))


def _write(path: Path, data: bytes) -> None:
    """A file that is there whole or not at all."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with staged.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(staged, path)


def file_digest(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
