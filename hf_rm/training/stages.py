# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Folders of a run in stages: what is finished is not done again, and never mixed with a run of other settings."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

SETTINGS_FILE, CLOCK_FILE = "settings.json", "clock.json"
NEUTRAL_ARGUMENTS = frozenset(
    """
    output_dir run_name project trackio_space_id trackio_bucket_id trackio_static_space_id report_to
    logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_level log_level_replica
    log_on_each_node include_num_input_tokens_seen disable_tqdm skip_memory_metrics debug
    save_only_model save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    do_train do_eval do_predict eval_strategy eval_steps eval_delay eval_on_start eval_accumulation_steps
    eval_do_concat_batches eval_use_gather_object per_device_eval_batch_size prediction_loss_only batch_eval_metrics
    include_for_metrics bf16_full_eval fp16_full_eval label_names
    resume_from_checkpoint restore_callback_states_from_checkpoint local_rank ddp_backend ddp_timeout
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context torch_empty_cache_steps
    gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs
    max_length use_cpu loss_chunk_rows pairs_per_forward num_completions_to_print num_generations_eval
    """.split()
)
"""
Arguments of a trainer that no weight depends on: where things go and what they are called; what is logged, saved,
published and evaluated; how data are fetched and processes meet; what is computed again rather than kept, where and
in which portions; and the longest row, since what it leaves out is known by the rows' digest.
"""
_SHOWN = 8


def settings_that_matter(values: Mapping[str, Any]) -> dict[str, Any]:
    """
    Those of a trainer's arguments that its weights depend on, as JSON can hold them.

    All but `NEUTRAL_ARGUMENTS` and what others make idle: the pool's settings without a pool, `max_attempts` under the
    paper's law, epochs where a number of steps is given.

    Args:
        values (`dict`): arguments by name.

    Example:
        >>> settings_that_matter({"max_steps": 10, "num_train_epochs": 3.0, "logging_steps": 5, "weight_decay": 0.1})
        {'max_steps': 10, 'weight_decay': 0.1}
    """
    idle = {name for name in values if name.startswith("pool_")} if not values.get("pool_fraction") else set()
    if values.get("law") == "paper":
        idle.add("max_attempts")
    if values.get("max_steps", 0) > 0:
        idle.add("num_train_epochs")
    kept = {
        name: value for name, value in values.items() if name not in NEUTRAL_ARGUMENTS | (idle - {"pool_fraction"})
    }
    return json.loads(json.dumps(kept, default=_readable))


def _readable(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return value.to_dict() if hasattr(value, "to_dict") else str(value)


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
        more = len(differing) - _SHOWN
        shown = "; ".join(differing[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(f"{folder} holds another run: {shown}. Pass another --output_dir or delete it.")


class Clock(TrainerCallback):
    """
    CPU and wall seconds that a stage took in this process, over all its beginnings.

    As a callback of a trainer it notes them with every checkpoint: a resumed run counts on from there, as it trains.
    The CPU time is that of all threads, and not that of other processes (a loader's workers, the sandbox).

    Args:
        path (`str` or `Path`, *optional*): where they are noted.
        resumed (`bool`, defaults to `True`): count on from what is noted there.
        parts (`dict`, *optional*): seconds of parts of the stage, by name; noted with the whole, which holds them.

    Example:
        >>> clock = Clock()
        >>> sorted(clock.seconds), clock.seconds["cpu_seconds"] < 60
        (['cpu_seconds', 'wall_seconds'], True)
    """

    def __init__(
        self, path: str | Path | None = None, resumed: bool = True, parts: Mapping[str, Any] | None = None
    ) -> None:
        self.path = None if path is None else Path(path)
        self.noted = read_clock(self.path) if self.path is not None and resumed else {}
        self.parts = {} if parts is None else parts
        self.began = {"cpu_seconds": time.process_time(), "wall_seconds": time.perf_counter()}

    @property
    def seconds(self) -> dict[str, Any]:
        """So far: `cpu_seconds`, `wall_seconds` and the parts."""
        now = {"cpu_seconds": time.process_time(), "wall_seconds": time.perf_counter()}
        spent = {name: self.noted.get(name, 0.0) + now[name] - began for name, began in self.began.items()}
        return {**self.noted, **self.parts, **spent}

    def save(self) -> None:
        """Note them."""
        if self.path is not None:
            write_json(self.path, self.seconds)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.save()


def read_clock(path: str | Path) -> dict[str, Any]:
    """What a [`Clock`] noted; empty where it noted nothing."""
    path = Path(path)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of settings under one name: what differs in an earlier stage is named, not all of that stage."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat
