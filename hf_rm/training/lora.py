# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
LoRA for wrapped models: which projections an adapter takes, the mask token's own rows, quantised backbones.

Reflective Masking teaches a model to predict the mask token at visible positions. A pretrained head has never been
asked to, so an adapter on the attention alone has to bend the hidden states towards a row that nobody trained.
[`default_lora_config`] therefore trains that row as well: in the embedding, which History Reference reads, and in the
head, which the mask loss reads.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel
from transformers.utils import logging

from ..families_rm import family_of

logger = logging.get_logger(__name__)

# Components of a module's path that say "attention", and ones that say that it is something else.
_ATTENTION = re.compile(r"att(n|ention)")
_FEED_FORWARD = re.compile(r"mlp|ffn|^ff_|feed_forward|intermediate|expert|router")
# Projections that a block may hold directly, without an attention module around them.
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query", "key", "value", "query_key_value", "Wqkv"}


def default_lora_config(
    model: PreTrainedModel,
    r: int = 16,
    lora_alpha: int | None = None,
    lora_dropout: float = 0.0,
    target_modules: str | Sequence[str] | None = None,
    train_mask_row: bool = True,
    **kwargs: Any,
) -> Any:
    """
    A `LoraConfig` for a wrapped model: its family's attention projections, and the mask token's rows trainable. The
    policy stream of a RemeDi model, which an untrained backbone does not have, is trained and saved whole.

    Args:
        model ([`RMForMaskedDiffusion`]): the model that will be adapted.
        r (`int`, defaults to 16): rank.
        lora_alpha (`int`, *optional*): scale, by default twice the rank.
        lora_dropout (`float`, defaults to 0.0): dropout before the adapter.
        target_modules (`str` or list of `str`, *optional*): as in peft; by default [`lora_targets`].
        train_mask_row (`bool`, defaults to `True`): also train the mask token's row of the embedding and of the head
            ([`mask_rows`]), which costs a vector each.
        kwargs: further arguments of `peft.LoraConfig`.

    Returns:
        `peft.LoraConfig`

    Raises:
        ValueError: when no attention projection is to be found, or the embedding is of a kind that peft cannot train
            in parts.

    Example:
        >>> from transformers import LlamaConfig
        >>> from hf_rm import RMConfig, RMForMaskedDiffusion
        >>> llama = LlamaConfig(vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        ...                     num_attention_heads=2, is_causal=False, architectures=["LlamaForCausalLM"])
        >>> model = RMForMaskedDiffusion(RMConfig(text_config=llama, mask_token_id=0))
        >>> default_lora_config(model).trainable_token_indices
        {'model.model.embed_tokens': [0], 'model.lm_head': [0]}
    """
    from peft import LoraConfig

    if train_mask_row:
        kwargs.setdefault("trainable_token_indices", mask_rows(model))
    if target_modules is None:
        target_modules = lora_targets(model)
        if getattr(model, "stream", None) is not None:
            kwargs.setdefault("modules_to_save", ["stream"])
            # Those of the backbone alone: an expression for the whole path.
            target_modules = rf"model\..*\.({'|'.join(map(re.escape, target_modules))})"
    return LoraConfig(
        r=r,
        lora_alpha=2 * r if lora_alpha is None else lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules,
        **kwargs,
    )


def lora_targets(model: PreTrainedModel) -> list[str]:
    """
    The attention projections of a model, as suffixes of module names: its family's, else those found by their names.

    Args:
        model ([`RMForMaskedDiffusion`]): the wrapper, or a backbone.

    Raises:
        ValueError: when there is none; the message says what to pass.
    """
    config = model.config
    family = family_of(getattr(config, "text_config", None) or config)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if family is not None and any(_ends_with(name, family.lora_targets) for name in linear):
        return list(family.lora_targets)
    found = {suffix: None for name in linear if (suffix := _attention_suffix(name)) is not None}
    if not found:
        raise ValueError(
            f"`target_modules` is None and no attention projection of {type(model).__name__} is recognised among its "
            f"linear layers ({', '.join(sorted({name.rpartition('.')[2] for name in linear}))}): pass "
            "LoraConfig(target_modules=[...]) with the names that end their paths."
        )
    return list(found)


def mask_rows(model: PreTrainedModel) -> dict[str, list[int]]:
    """
    `trainable_token_indices` for the mask token: its row of the embedding, and of the head unless that is tied to it
    (peft ties the two by itself then).

    Raises:
        ValueError: for an embedding or a head of a kind that peft cannot train in parts.
    """
    names = {module: name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    for module in rows:
        if not isinstance(module, (nn.Embedding, nn.Linear)):
            raise ValueError(
                f"{names.get(module)!r} is a {type(module).__name__}, of which peft cannot train single rows: pass "
                "train_mask_row=False, or modules_to_save=[...] to train it whole."
            )
    return {names[module]: [model.config.mask_token_id] for module in rows}


def complete_peft_config(model: PreTrainedModel, peft_config: Any) -> Any:
    """
    A copy of `peft_config` that fits a wrapped model: targets filled in where there are none, and no task type.

    A task type makes peft dress the model as one of its own kinds (`CAUSAL_LM` asks for
    `prepare_inputs_for_generation`), and it has none for mask diffusion. trl's `ModelConfig` sets one unasked.
    """
    from peft import PeftConfig

    if not isinstance(peft_config, PeftConfig):
        raise ValueError(
            f"`peft_config` is a {type(peft_config).__name__}: pass a peft config, for example "
            "hf_rm.training.default_lora_config(model)."
        )
    config = copy.deepcopy(peft_config)
    if config.task_type is not None:
        logger.info(f"task_type={config.task_type} of the peft config is left out: peft has none for mask diffusion.")
        config.task_type = None
    chosen = getattr(config, "target_modules", ()) or getattr(config, "target_parameters", None)
    if hasattr(config, "target_modules") and not chosen:
        config.target_modules = lora_targets(model)
    return config


def add_adapter(model: PreTrainedModel, peft_config: Any) -> Any:
    """
    `model` with a fresh adapter, everything else frozen; a quantised backbone is prepared for training first.

    Raises:
        ValueError: when the model already has an adapter, or `peft_config` does not fit.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    if is_adapted(model):
        raise ValueError(
            "`peft_config` is given, but the model already has an adapter: pass one of the two. To go on from an "
            "adapter pass the PeftModel alone; for a second one call merge_and_unload() first."
        )
    config = complete_peft_config(model, peft_config)
    for part in _quantised_parts(model):
        # Gradient checkpointing is the Trainer's to switch on.
        prepare_model_for_kbit_training(part, use_gradient_checkpointing=False)
    return get_peft_model(model, config)


def prepare_for_training(model: PreTrainedModel, peft_config: Any) -> Any:
    """
    What a trainer trains: the model as it is, or with the adapter that `peft_config` describes.

    All that is trained of an adapted model is kept in 32 bits ([`keep_in_full_precision`]).

    Raises:
        ValueError: see [`add_adapter`]; also for a quantised model without an adapter, and for an adapter that was
            loaded for inference: nothing would be trained.
    """
    if peft_config is not None:
        model = add_adapter(model, peft_config)
    if not is_adapted(model):
        if any(parameter.requires_grad and parameter.dtype in _HALF for parameter in model.parameters()):
            # Not cast: twice the memory is not ours to take.
            logger.warning(
                f"The model's own weights are trained in {model.dtype}: steps much smaller than a weight's last bit "
                "are rounded away. Load it with dtype=float32 and pass bf16=True, or train an adapter."
            )
        if _quantised_parts(model):
            raise ValueError(
                "the model is quantised and `peft_config` is None: quantised weights cannot be trained. Pass a "
                "peft_config, for example hf_rm.training.default_lora_config(model)."
            )
    elif not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "the model's adapter is frozen, nothing would be trained: load it with "
            "PeftModel.from_pretrained(model, folder, is_trainable=True)."
        )
    else:
        keep_in_full_precision(model)
    return model


def keep_in_full_precision(model: nn.Module) -> None:
    """
    Cast what an adapted model trains in 16 bits to 32.

    PEFT does so for its own layers, but not for modules that are trained and saved whole, such as a policy stream: of
    a weight near 1 the last bit in bfloat16 is 0.008, and an optimizer's step of 2e-5 would be rounded away. These
    modules still fit into a network of 16 bits: without autocast they convert what they read and give.
    """
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for saved in module.modules_to_save.values():
                dtypes = {parameter.dtype for parameter in saved.parameters() if parameter.requires_grad}
                if len(dtypes) == 1 and (dtype := dtypes.pop()) in _HALF:
                    saved.register_forward_pre_hook(_read_in_full_precision, with_kwargs=True)
                    saved.register_forward_hook(partial(_give_as, dtype))
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in _HALF:
            parameter.data = parameter.data.float()


_HALF = (torch.float16, torch.bfloat16)


def _read_in_full_precision(module: nn.Module, args: Any, kwargs: Any) -> Any:
    device = next(module.parameters()).device.type
    return None if torch.is_autocast_enabled(device) else tree_map(_as(torch.float32), (args, kwargs))


def _give_as(dtype: torch.dtype, module: nn.Module, args: Any, output: Any) -> Any:
    return tree_map(_as(dtype), output)


def _as(dtype: torch.dtype) -> Any:
    return lambda value: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value


def is_adapted(model: nn.Module) -> bool:
    """Whether a model carries an adapter, as a `PeftModel` or through transformers' own `add_adapter`."""
    return hasattr(model, "peft_config") or bool(getattr(model, "_hf_peft_config_loaded", False))


def check_quantisation(model_kwargs: dict[str, Any]) -> None:
    """
    Refuse, before anything is loaded, a bitsandbytes configuration that cannot be followed here.

    Raises:
        ValueError: when `quantization_config` asks for bitsandbytes and that is not installed.
    """
    config = model_kwargs.get("quantization_config")
    values = config if isinstance(config, dict) else getattr(config, "__dict__", {})
    wanted = any(values.get(name) for name in ("load_in_4bit", "_load_in_4bit", "load_in_8bit", "_load_in_8bit"))
    if wanted and find_spec("bitsandbytes") is None:
        raise ValueError(
            "`quantization_config` asks for bitsandbytes, which is not installed: `pip install bitsandbytes` (it is "
            "made for GPUs), or leave the quantisation out."
        )


def _quantised_parts(model: nn.Module) -> list[Any]:
    """The outermost network that was loaded quantised, the wrapper or the backbone inside it; none, or one."""
    parts = [model, getattr(model, "model", None)]
    return [part for part in parts if getattr(part, "is_quantized", False)][:1]


def _ends_with(name: str, suffixes: Iterable[str]) -> bool:
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)


def _attention_suffix(name: str) -> str | None:
    """
    The end of a linear layer's path that is certain to mean attention, or None.

    It begins at the attention module: BERT's `attention.output.dense` is a projection, its `output.dense` the MLP's.
    """
    *parents, leaf = name.split(".")
    inside = [i for i, part in enumerate(parents) if _ATTENTION.search(part)]
    if inside:
        path = [*parents[inside[-1] :], leaf]
        return None if any(_FEED_FORWARD.search(part) for part in path) else ".".join(path)
    if any(_FEED_FORWARD.search(part) for part in parents):
        return None
    return leaf if leaf in _PROJECTIONS or _ATTENTION.search(leaf) else None
