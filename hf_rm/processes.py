# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Several processes: on a machine without an accelerator they have to be told that they meet on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, get_int_from_env, parse_flag_from_env

Item = TypeVar("Item")

_WORLD_SIZES = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]


def meet_on_cpu() -> bool:
    """
    Whether this is one of several processes with nothing but the CPU, as `torchrun --nproc_per_node 2` starts them.

    Without `cpu=True` accelerate gives each a state of its own there: every one takes itself for the main process.

    Example:
        >>> meet_on_cpu()
        False
    """
    return get_int_from_env(_WORLD_SIZES, 1) > 1 and not torch.accelerator.is_available()


def processes() -> PartialState:
    """
    The processes of this run, set up where nothing has done that yet.

    Example:
        >>> processes().num_processes
        1
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState() if PartialState._shared_state else PartialState(cpu=on_cpu)


def own_share(items: Sequence[Item]) -> tuple[Sequence[Item], str]:
    """
    What this process does of a list, and the name of the folder for it: another number of processes shares otherwise.

    Example:
        >>> own_share("abc")
        ('abc', 'part-0-of-1')
    """
    state = processes()
    number, count = state.process_index, state.num_processes
    return items[number::count], f"part-{number}-of-{count}"


def gathered(found: Sequence[Item]) -> list[Item]:
    """
    What all processes found, in every one of them, process by process.

    Example:
        >>> gathered("ab")
        ['a', 'b']
    """
    return list(gather_object(list(found)) if processes().num_processes > 1 else found)
