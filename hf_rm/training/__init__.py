# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Training: arguments, losses, the optimizer, RMTrainer, RemeDi's Remask SFT, the vanilla masked-diffusion SFT."""

from .arguments import MaskedSFTArguments, RMTrainingArguments
from .lora import default_lora_config, lora_targets, mask_rows
from .losses import LossParts, clipped_cross_entropy
from .optimizers import MuonWithAdamW
from .remask_sft import RemaskSFTArguments, RemaskSFTTrainer
from .sft import MaskedSFTCollator, MaskedSFTTrainer
from .trainer import RMTrainer

__all__ = [
    "LossParts",
    "MaskedSFTArguments",
    "MaskedSFTCollator",
    "MaskedSFTTrainer",
    "MuonWithAdamW",
    "RMTrainer",
    "RMTrainingArguments",
    "RemaskSFTArguments",
    "RemaskSFTTrainer",
    "clipped_cross_entropy",
    "default_lora_config",
    "lora_targets",
    "mask_rows",
]
