# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
The families of published mask diffusion models, and how each becomes a class of transformers.

A family whose network transformers already has (LLaDA is a bidirectional Llama) is a configuration that translates the
published one, a key mapping for the weights (both in `llada.py`), and a handful of facts. No network of our own, no
remote code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import cached_file

from .generation_denoiser_rm import Denoised
from .generation_rm import ReflectiveGenerationMixin
from .heads_rm import position_logits, real_positions
from .llada import CONFIGS, ILLaDAConfig, LLaDAConfig, published_names, register_conversions

_WHERE = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
# Heads of other tasks in a masked language model's checkpoint: BERT and ALBERT are published with them.
_OTHER_HEADS = ("pooler", "seq_relationship", "sop_classifier", "position_ids")


@dataclass(frozen=True)
class Family:
    """
    What is known of a family before any of its checkpoints is opened.

    Attributes:
        name (`str`): how it is called in tables and messages.
        backbone_class (`str`, *optional*): its class, ours or transformers'; without one the Auto classes know.
        mask_token_id (`int`, *optional*): what its checkpoints mask with, where neither config nor tokenizer says so.
        eos_token_id (`int`, *optional*): what ends a text.
        logits_shift (`bool`): see [`RMConfig`].
        attention_block_length (`int`, *optional*): see [`RMConfig`].
        vocabulary (`tuple[int, int]`, *optional*): rows of the published embedding table, and how many of them, from
            the first on, are tokens.
        lora_targets (`tuple[str, ...]`): projections that an adapter takes by default: the attention's.
    """

    name: str
    backbone_class: str | None = None
    mask_token_id: int | None = None
    eos_token_id: int | None = None
    logits_shift: bool = False
    attention_block_length: int | None = None
    vocabulary: tuple[int, int] | None = None
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def suppressed_token_ids(self, vocab_size: int) -> list[int] | None:
        """Ids that are padding of the embedding table, where it is the published one; None for none known."""
        rows, tokens = self.vocabulary or (None, 0)
        return list(range(tokens, vocab_size)) if rows == vocab_size else None


_BERT_TARGETS = ("query", "key", "value")
FAMILIES: dict[str, Family] = {
    "llada": Family("LLaDA", "LLaDAModelLM", 126336, 126081, vocabulary=(126464, 126349)),
    "illada": Family("iLLaDA", "ILLaDAForCausalLM", 5, 2),
    "lumina": Family("Lumina-DiMOO", "LLaDAModelLM", 126336, 126081),
    "lladamoe": Family("LLaDA-MoE", "Qwen3MoeForCausalLM", 156895, 156892),
    "llada2_moe": Family("LLaDA2", "Glm4MoeForCausalLM", 156895, 156892, attention_block_length=32),
    "Dream": Family("Dream", "Qwen2ForCausalLM", 151666, 151643, logits_shift=True, vocabulary=(152064, 151667)),
    "a2d-qwen3": Family("A2D Qwen3", "Qwen3ForCausalLM", 151669, 151645, vocabulary=(151936, 151670)),
    "a2d-qwen2": Family("A2D Qwen2", "Qwen2ForCausalLM"),
    "a2d-llama": Family("A2D Llama", "LlamaForCausalLM"),
    "bert": Family("BERT", lora_targets=_BERT_TARGETS),
    "albert": Family("ALBERT", lora_targets=_BERT_TARGETS),
    "modernbert": Family("ModernBERT", lora_targets=("attn.Wqkv", "attn.Wo")),
}
"""Families by `model_type`; `family_of` also tells apart those that are published under LLaDA's."""


class _NativeMaskedLM(ReflectiveGenerationMixin, LlamaForCausalLM):
    """A Llama that looks both ways and decodes: without the wrapper it has no history, so by training-free rules."""

    def _denoise(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        editable_mask: Tensor,
        history: Any,
        use_history: bool,
        positions: Tensor | None,
        **inputs: Any,
    ) -> Denoised:
        if attention_mask is not None:
            inputs.setdefault("position_ids", real_positions(attention_mask))
        return Denoised(position_logits(self, positions, input_ids=input_ids, attention_mask=attention_mask, **inputs))


class LLaDAModelLM(_NativeMaskedLM):
    """
    LLaDA-8B, LLaDA-1.5 and Lumina-DiMOO's LLaDA as transformers' Llama, without remote code.

    Example:
        >>> model = AutoModelForMaskedLM.from_pretrained("GSAI-ML/LLaDA-8B-Base")  # doctest: +SKIP
        >>> model.generate_reflective(input_ids, max_new_tokens=64, reveal="confidence", revise=None)  # doctest: +SKIP
    """

    config_class = LLaDAConfig

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        # LLaDA pads with the token that ends a text: its embedding is trained like any other.
        self.model.embed_tokens.padding_idx = None

    def save_pretrained(
        self, save_directory: Any, *args: Any, save_original_format: bool = True, **kwargs: Any
    ) -> Any:
        """As in transformers: weights *and* `config.json` under LLaDA's names, or, with False, under Llama's."""
        if save_original_format:
            # transformers reverts what loading this model took, which is nothing if it came under Llama's names.
            self.__dict__.pop("_weight_conversions", None)
        token = published_names.set(save_original_format)
        try:
            return super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)
        finally:
            published_names.reset(token)


class ILLaDAForCausalLM(_NativeMaskedLM):
    """iLLaDA-8B as transformers' Llama, without remote code."""

    config_class = ILLaDAConfig


_OWN_CLASSES: dict[str, Any] = {"LLaDAModelLM": LLaDAModelLM, "ILLaDAForCausalLM": ILLaDAForCausalLM}


def backbone_class(name: str | None) -> Any:
    """
    The class of that name, ours or transformers'.

    Raises:
        ValueError: when neither has one.
    """
    found: Any = _OWN_CLASSES.get(name or "") or getattr(transformers, name or "", None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ValueError(
            f"`backbone_class` is {name!r}, which transformers {transformers.__version__} does not have: pass the "
            "name of one of its model classes, for example 'LlamaForCausalLM'."
        )
    return found


def family_of(config: PreTrainedConfig) -> Family | None:
    """The family of a loaded backbone's config, or None for one that is not known."""
    name = config.model_type
    if name == "llada" and "LLaDAForMultiModalGeneration" in (config.architectures or ()):
        name = "lumina"
    elif name == "llada" and config.vocab_size == 155136:
        name = "illada"  # its mask is not LLaDA's, which would be a word there
    return FAMILIES.get(name)


def find_mask_token_id(backbone: PreTrainedModel, tokenizer: Callable[[], Any]) -> int | None:
    """The mask id of the config, else of the tokenizer that the call returns, else of the family; None without any."""
    own = getattr(backbone.config, "mask_token_id", None)
    if own is None:
        own = getattr(tokenizer(), "mask_token_id", None)
    family = family_of(backbone.config)
    return own if own is not None or family is None else family.mask_token_id


def load_backbone(name: str, **kwargs: Any) -> PreTrainedModel:
    """
    A backbone with a language-model head: any family of the table, or any model of transformers' Auto classes.

    Args:
        name (`str`): a Hub name or a folder.
        kwargs: as for `from_pretrained` (`dtype`, `device_map`, `quantization_config`, `revision`, `config`, ...), and
            `is_causal`, which replaces the configuration's.

    Returns:
        `PreTrainedModel`: every parameter of it read from the checkpoint.

    Raises:
        ValueError: for a `model_type` that nobody knows, or a network that transformers does not compute.
        OSError: for missing, unexpected or misshapen weights, naming the first, and for damaged files.

    Example:
        >>> load_backbone("GSAI-ML/LLaDA-8B-Base", dtype="bfloat16", device_map="auto")  # doctest: +SKIP
    """
    register_conversions()
    config, is_causal = kwargs.pop("config", None) or _read_config(name, kwargs), kwargs.pop("is_causal", None)
    if is_causal is not None:
        config.is_causal = is_causal
    with readable_weights(name, kwargs):
        model, report = _loader(config).from_pretrained(name, config=config, output_loading_info=True, **kwargs)
    refuse_wrong_keys(name, model, report)
    return model


def refuse_wrong_keys(name: Any, model: Any, report: Any, kinds: Sequence[str] = ("missing", "unexpected")) -> None:
    """An OSError that names the first keys of a loading report that the weights lack, or have too many of."""
    for kind in kinds:
        keys = sorted(key for key in report[f"{kind}_keys"] if not any(part in key for part in _OTHER_HEADS))
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise OSError(
                f"The weights of {str(name)!r} have {kind} keys for {type(model).__name__}: {', '.join(keys[:3])}"
                f"{more}. They are not whole, or belong to another network than config.json says: check both."
            )


def _where(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: kwargs[key] for key in _WHERE if key in kwargs}


def _read_config(name: str, kwargs: dict[str, Any]) -> PreTrainedConfig:
    values, _ = PreTrainedConfig.get_config_dict(name, **_where(kwargs))
    if "model_type" not in values:
        raise OSError(
            f"{name!r} has no config.json with a model_type: pass a Hub name or the folder of a saved model."
        )
    known = CONFIGS.get(values["model_type"])
    if known is not None:
        return known.from_pretrained(name, **_where(kwargs))
    try:
        trust = kwargs.get("trust_remote_code", False)
        return AutoConfig.from_pretrained(name, trust_remote_code=trust, **_where(kwargs))
    except ValueError as error:
        raise ValueError(
            f"{name!r} has model_type {values['model_type']!r}, which neither hf_rm nor transformers "
            f"{transformers.__version__} can load by itself ({', '.join(sorted(FAMILIES))} and transformers' own can "
            "be): pass a loaded model, or backbone_kwargs=dict(trust_remote_code=True) if you trust its code."
        ) from error


def _loader(config: PreTrainedConfig) -> Any:
    """The class, ours or an Auto class, that loads a checkpoint of this configuration."""
    family = family_of(config) if isinstance(config, tuple(CONFIGS.values())) else None
    if isinstance(config, LLaDAConfig):
        return LLaDAModelLM
    if family is not None:
        return backbone_class(family.backbone_class)
    remote = getattr(config, "auto_map", None) or {}
    for auto in (AutoModelForMaskedLM, AutoModelForCausalLM):
        if type(config) in auto._model_mapping or auto.__name__ in remote:
            return auto
    if "AutoModel" in remote and not type(config).__module__.startswith("transformers.models."):
        return AutoModel
    raise ValueError(
        f"{type(config).__name__} ({config.model_type!r}) has no language-model head in transformers: pass a "
        "checkpoint of a masked or causal language model."
    )


@contextmanager
def readable_weights(name: Any, kwargs: dict[str, Any]) -> Iterator[None]:
    """Turn the loader's errors about damaged or misshapen weights into an OSError that names the file or the key."""
    try:
        yield
    except SafetensorError as error:
        folder = name if Path(name).is_dir() else Path(cached_file(name, "config.json", **_where(kwargs))).parent
        files = ", ".join(_unreadable_files(folder)) or "a weight file"
        raise OSError(
            f"{files} of {str(name)!r} is truncated or damaged ({error}): copy or download it again."
        ) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise OSError(f"Weights of {str(name)!r} do not have the shapes that its config.json says: {error}") from error


def _unreadable_files(folder: Any) -> list[str]:
    """Names of the weight files in a local folder that safetensors cannot open."""
    damaged = []
    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError:
            damaged.append(file.name)
    return damaged
