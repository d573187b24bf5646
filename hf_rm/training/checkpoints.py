# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are whole or not there: written to a staging folder, flushed, then renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

STAGING = ".staging"


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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
