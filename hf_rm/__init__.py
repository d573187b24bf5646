# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
hf_rm: mask diffusion language models that correct themselves.

Importing the package registers the wrapper with transformers' Auto classes, so that
`AutoModel.from_pretrained(...).generate_reflective()` works. Everything else is imported when it is first used.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from .configuration_rm import RMConfig
from .families_rm import ILLaDAForCausalLM, LLaDAModelLM
from .llada import CONFIGS, LLaDAConfig, register_conversions
from .modeling_rm import RMForMaskedDiffusion
from .remedi_rm import RemeDiConfig, RemeDiForMaskedDiffusion

if TYPE_CHECKING:
    from .corruption import RMDataCollator as RMDataCollator
    from .generation_config_rm import ReflectiveGenerationConfig as ReflectiveGenerationConfig
    from .generation_rm import ReflectiveGenerationMixin as ReflectiveGenerationMixin
    from .history import HistorySegments as HistorySegments
    from .history import HistoryState as HistoryState
    from .training import RemaskSFTArguments as RemaskSFTArguments
    from .training import RemaskSFTTrainer as RemaskSFTTrainer
    from .training import RMTrainer as RMTrainer
    from .training import RMTrainingArguments as RMTrainingArguments

__version__ = "0.1.0"

_LAZY = {
    "HistoryReference": "history",
    "HistorySegments": "history",
    "HistoryState": "history",
    "ReflectiveGenerationConfig": "generation_config_rm",
    "ReflectiveGenerationMixin": "generation_rm",
    "ReflectiveOutput": "generation_rm",
    "RMDataCollator": "corruption",
    "RMTrainer": "training",
    "RMTrainingArguments": "training",
    "RemaskSFTArguments": "training",
    "RemaskSFTTrainer": "training",
}
__all__ = [
    "LLaDAConfig",
    "LLaDAModelLM",
    "RMConfig",
    "RMForMaskedDiffusion",
    "RemeDiConfig",
    "RemeDiForMaskedDiffusion",
    *sorted(_LAZY),
]

register_conversions()


def _of_another_model(record: logging.LogRecord) -> bool:
    """transformers' report of an adapter calls a tied head's rows newly initialized; ours raises where they are."""
    return "MaskedDiffusion LOAD REPORT" not in record.getMessage()


logging.getLogger("transformers.integrations.peft").addFilter(_of_another_model)

_WRAPPERS: dict[type[RMConfig], Any] = {RMConfig: RMForMaskedDiffusion, RemeDiConfig: RemeDiForMaskedDiffusion}
for _type, _config in {**{_config.model_type: _config for _config in _WRAPPERS}, **CONFIGS}.items():
    AutoConfig.register(_type, _config, exist_ok=True)
for _auto in (AutoModel, AutoModelForMaskedLM):
    for _config, _wrapper in _WRAPPERS.items():
        _auto.register(_config, _wrapper, exist_ok=True)
for _model in (LLaDAModelLM, ILLaDAForCausalLM):
    # Their repositories name remote code for causal models too: whoever loads one so gets the native class.
    for _auto in (AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM):
        _auto.register(_model.config_class, _model, exist_ok=True)


def _push(*args: Any, **kwargs: Any) -> Any:
    from .hub import push

    return push(*args, **kwargs)


RMForMaskedDiffusion.hub_push = staticmethod(_push)


def _probe_backbone(model: RMForMaskedDiffusion) -> None:
    from .backbones import probe_on_load

    probe_on_load(model)


RMForMaskedDiffusion.backbone_probe = staticmethod(_probe_backbone)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'hf_rm' has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
