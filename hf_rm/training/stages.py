# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Folders of a run in stages: what is finished is not done again, and never mixed with a run of other settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SETTINGS_FILE = "settings.json"


def write_json(path: str | Path, value: Any) -> None:
    """Write beside, then rename: an interrupted run leaves no half file, and processes may write the same one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(f".{os.getpid()}.tmp")
    staged.write_text(json.dumps(value, indent=2), encoding="utf-8")
    staged.replace(path)


def claim_folder(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """
    Note a run's settings in its folder.

    Args:
        folder (`str` or `Path`): of the run; made where it is missing.
        settings (`dict`): what the result depends on, as JSON can hold it.

    Raises:
        ValueError: for a folder with a run of other settings; the message names those that differ.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> claim_folder(folder, {"max_steps": 10}); claim_folder(folder, {"max_steps": 10})
        >>> claim_folder(folder, {"max_steps": 20})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: ... holds another run: max_steps is 10 there and 20 here. Pass another --output_dir or delete it.
    """
    path, settings = Path(folder) / SETTINGS_FILE, json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, settings)
        return
    known, settings = _flat(json.loads(path.read_text(encoding="utf-8"))), _flat(settings)
    differing = [
        f"{name} is {known.get(name)} there and {settings.get(name)} here"
        for name in dict.fromkeys([*known, *settings])
        if known.get(name) != settings.get(name)
    ]
    if differing:
        raise ValueError(
            f"{folder} holds another run: {'; '.join(differing)}. Pass another --output_dir or delete it."
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of settings under one name: what differs in an earlier stage is named, not all of that stage."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat
