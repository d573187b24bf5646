# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Folders as the Hub holds them: weights, configs, tokenizer, and the flat core as remote code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

CODE_FILES = (
    "llada.py",
    "configuration_rm.py",
    "families_rm.py",
    "vocabulary_rm.py",
    "history.py",
    "generation_config_rm.py",
    "generation_rules_rm.py",
    "generation_output_rm.py",
    "generation_canvas_rm.py",
    "generation_rows_rm.py",
    "generation_rm.py",
    "modeling_rm.py",
)
"""The flat core: what a repository needs so that `trust_remote_code=True` works without this package."""

AUTO_MAP = {
    "AutoConfig": "configuration_rm.RMConfig",
    "AutoModel": "modeling_rm.RMForMaskedDiffusion",
    "AutoModelForMaskedLM": "modeling_rm.RMForMaskedDiffusion",
}


def export_code(folder: str | Path) -> None:
    """Copy the flat core into `folder`, as it is."""
    here = Path(__file__).parent
    for name in CODE_FILES:
        shutil.copyfile(here / name, Path(folder) / name)


def save_for_hub(model: Any, folder: str | Path, tokenizer: Any = None) -> Path:
    """
    Save a wrapper so that `AutoModel.from_pretrained(folder)` restores it with this package, and with
    `trust_remote_code=True` without it.

    Args:
        model ([`RMForMaskedDiffusion`]): the model; its config gets the `auto_map`.
        folder (`str` or `Path`): where to; files of the same names are replaced.
        tokenizer (*optional*): saved beside it.

    Returns:
        `Path`: the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.auto_map = dict(AUTO_MAP)
    model.save_pretrained(folder)
    export_code(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder
