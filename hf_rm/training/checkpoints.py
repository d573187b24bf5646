# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Checkpoints that are whole or not there: written to a staging folder, listed, flushed, then renamed.

Also how they are checked, their weights read back and told apart, and their arguments written without a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from ..corruption.shards import file_digest

STAGING = ".staging"
MANIFEST = "files.json"
"""In a checkpoint: the name of every other file of it, with its size and a digest of its bytes."""


def publish_folder(staged: Path, final: Path) -> None:
    """
    Move a finished folder to its place in one step. A folder of that name from an earlier run is replaced.

    `os.replace` cannot put a folder on top of a full one, so the old one is first moved aside, to the staging folder.
    """
    for path in staged.rglob("*"):
        if path.is_file():
            _flush(path)
    if final.exists():
        aside = staged.with_name(f"{staged.name}.replaced")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
    os.replace(staged, final)
    _flush(final.parent)


def list_files(folder: Path) -> None:
    """
    Write down which files a finished folder has and what is in them, for [`check_checkpoint`].

    Their bytes are read once more for it: 1.5 s of one core of an AMD EPYC for each GiB that is still in memory, and
    the same again where the checkpoint is resumed.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "digest": file_digest(path)}
        for path in files
    }
    (folder / MANIFEST).write_text(json.dumps(entries, indent=2))


def check_checkpoint(folder: str | Path, needed: Sequence[str] = ()) -> None:
    """
    Refuse a checkpoint that is not whole: transformers leaves out what is missing, and trains on to other weights.

    Args:
        folder (`str` or `Path`): the checkpoint.
        needed (sequence of `str`): patterns of files that have to be there, listed or not.

    Raises:
        OSError: for a file that is missing, of another size or content than it was written with, or unreadable; names
            the first.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "trainer_state.json").write_text("{}")
        2
        >>> list_files(folder); check_checkpoint(folder, ["*.json"])
        >>> check_checkpoint(folder, ["optimizer.pt"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        OSError: optimizer.pt of the checkpoint ... is missing: resume from the checkpoint before it.
    """
    folder = Path(folder)
    entries = _listed(folder)
    there = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for name in [*entries, *(pattern for pattern in needed if not any(folder.glob(pattern)))]:
        if name not in there:
            raise _not_whole(folder, name, "is missing")
    for name, path in there.items():
        size = path.stat().st_size
        expected, _ = entries.get(name, (size, None))
        if size != expected:
            raise _not_whole(folder, name, f"has {size} bytes of {expected} ({_ON_PURPOSE})")
        if _is_damaged(path):
            raise _not_whole(folder, name, "cannot be read")
    # Last, when all that is quickly found out is right: every byte is read.
    for name, (_, digest) in entries.items():
        if digest is not None and file_digest(there[name]) != digest:
            raise _not_whole(folder, name, f"has other bytes than it was written with ({_ON_PURPOSE})")


_ON_PURPOSE = f"if you changed it on purpose, delete {MANIFEST}"


def _listed(folder: Path) -> dict[str, tuple[int, str | None]]:
    """Size and digest of every file on the list, of none without a list; an earlier one holds the sizes alone."""
    listed = folder / MANIFEST
    if not listed.exists():
        return {}
    try:
        entries = json.loads(listed.read_text(encoding="utf-8"))
        return {
            name: (entry, None) if isinstance(entry, int) else (entry["size"], entry["digest"])
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_whole(folder, MANIFEST, "cannot be read") from error


def _not_whole(folder: Path, name: str, what: str) -> OSError:
    return OSError(f"{name} of the checkpoint {folder} {what}: resume from the checkpoint before it.")


def _is_damaged(path: Path) -> bool:
    """Whether a file is not of the format that its name says, as far as a look at its ends can tell."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                pass
        return path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path)
    except (ValueError, SafetensorError):
        return True


def load_whole_weights(folder: str | Path | None, model: Any, accelerator: Accelerator) -> bool:
    """
    Load a checkpoint's unsharded weights into a model, as `from_pretrained` reads them; none may be missing.

    transformers would compare names as they are in the file. Families with published names of their own (LLaDA) are
    saved under these: every weight would be missing, and training go on from what happened to be there.

    Args:
        folder (`str` or `Path`, *optional*): the checkpoint.
        model (`PreTrainedModel`): what the weights go into.
        accelerator (`Accelerator`): the trainer's.

    Returns:
        `bool`: False where nothing was loaded: without a folder, and for weights that are not ours to read, an
        adapter's or those that are spread over processes.

    Example:
        >>> load_whole_weights("out/checkpoint-100", trainer.model, trainer.accelerator)  # doctest: +SKIP
        True
    """
    spread = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if folder is None or spread or not any(Path(folder).glob("model*.safetensors")):
        return False
    widest = max((parameter.dtype for parameter in model.parameters()), key=lambda dtype: dtype.itemsize)
    model.load_state_dict(type(model).from_pretrained(folder, dtype=widest).state_dict())
    return True


_DEFINING = ("config.json", "generation_config.json", "*.safetensors", "adapter/*.json", "adapter/*.safetensors")


def saved_digest(model: str | Path, revision: str | None = None) -> str | None:
    """
    What tells a saved model from another one of the same name: a hash of its weights and configuration, or of a model
    on the Hub the commit.

    Args:
        model (`str` or `Path`): a folder, or a Hub name.
        revision (`str`, *optional*): of a Hub name.

    Returns:
        `str`, *optional*: None for a folder that is not there (yet).

    Raises:
        OSError: for a Hub name that cannot be reached.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text("{}")
        >>> before = saved_digest(folder)
        >>> _ = (folder / "model.safetensors").write_bytes(b"weights")
        >>> saved_digest(folder) == before
        False
    """
    folder = Path(model)
    if not folder.is_dir():
        if isinstance(model, Path):
            return None
        return PreTrainedConfig.get_config_dict(model, revision=revision)[0].get("_commit_hash")
    whole = hashlib.blake2b(digest_size=8)
    for path in sorted(path for pattern in _DEFINING for path in folder.glob(pattern)):
        state = path.stat()
        whole.update(path.relative_to(folder).as_posix().encode())
        whole.update(_file_digest(path, state.st_size, state.st_mtime_ns))
    return whole.hexdigest()


@lru_cache(maxsize=1024)
def _file_digest(path: Path, size: int, modified: int) -> bytes:
    """Of a file's bytes; a file of gigabytes is read once, until it changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def replace_pickled_arguments(args: Any, folder: str | Path | None = None) -> None:
    """
    Put the arguments as JSON in the place of their pickle, which has none in a folder that others load.

    Args:
        args (`TrainingArguments`): the trainer's.
        folder (`str` or `Path`, *optional*): where it saved; by default its `output_dir`.

    Example:
        >>> import tempfile
        >>> from transformers import TrainingArguments
        >>> folder = tempfile.mkdtemp()
        >>> replace_pickled_arguments(TrainingArguments(folder, use_cpu=True, max_steps=7))
        >>> json.loads((Path(folder) / "training_args.json").read_text())["max_steps"]
        7
    """
    place = Path(folder or args.output_dir)
    (place / "training_args.bin").unlink(missing_ok=True)
    (place / "training_args.json").write_text(json.dumps(args.to_sanitized_dict(), indent=2, default=str))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
