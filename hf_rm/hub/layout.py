# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Folders as the Hub holds them: weights, configs, tokenizer, and the flat core as remote code."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file, save_file

from ..adapters_rm import ADAPTER_FOLDER, base_of
from ..modeling_rm import RMForMaskedDiffusion

CODE_FILES = (
    "llada.py",
    "configuration_rm.py",
    "vocabulary_rm.py",
    "families_rm.py",
    "heads_rm.py",
    "history.py",
    "adapters_rm.py",
    "generation_config_rm.py",
    "generation_rules_rm.py",
    "generation_revision_rm.py",
    "generation_output_rm.py",
    "generation_canvas_rm.py",
    "generation_rows_rm.py",
    "generation_sampler_rm.py",
    "generation_denoiser_rm.py",
    "generation_rm.py",
    "modeling_rm.py",
    "remedi_rm.py",
)
"""The flat core: what a repository needs so that `trust_remote_code=True` works without this package."""

AUTO_MAP = {
    "AutoConfig": "configuration_rm.RMConfig",
    "AutoModel": "modeling_rm.RMForMaskedDiffusion",
    "AutoModelForMaskedLM": "modeling_rm.RMForMaskedDiffusion",
}
"""Where remote code finds [`RMForMaskedDiffusion`] and its configuration."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
"""Endings of files that may run code when they are opened."""

_ADAPTER_WEIGHTS = "adapter_model.safetensors"


def auto_map(model: Any) -> dict[str, str]:
    """Where remote code finds the classes of this wrapper."""
    where = {
        kind: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}" for kind in (type(model.config), type(model))
    }
    config, wrapper = where.values()
    return {name: config if name == "AutoConfig" else wrapper for name in AUTO_MAP}


def export_code(folder: str | Path) -> None:
    """Copy the flat core into `folder`, as it is."""
    here = Path(__file__).parents[1]
    for name in CODE_FILES:
        shutil.copyfile(here / name, Path(folder) / name)


def save_for_hub(
    model: Any, folder: str | Path, tokenizer: Any = None, *, weights: str | Path | None = None, **save_kwargs: Any
) -> Path:
    """
    Save a wrapper so that `AutoModel.from_pretrained(folder)` restores it with this package, and with
    `trust_remote_code=True` without it.

    Args:
        model ([`RMForMaskedDiffusion`]): the model; its config gets the `auto_map`.
        folder (`str` or `Path`): where to; files of the same names are replaced.
        tokenizer (*optional*): saved beside it.
        weights (`str` or `Path`, *optional*): a folder with the saved weights, which are copied; the model's own
            otherwise.
        save_kwargs: passed to `save_pretrained` (`max_shard_size`).

    Returns:
        `Path`: the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.auto_map = auto_map(model)
    if weights is None:
        model.save_pretrained(folder, **save_kwargs)
    else:
        for file in sorted(Path(weights).glob("model*.safetensors*")):
            shutil.copyfile(file, folder / file.name)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    _finish(folder, tokenizer)
    return folder


def save_adapter_for_hub(
    model: Any,
    folder: str | Path,
    tokenizer: Any = None,
    *,
    base_model: str | None = None,
    base_revision: str | None = None,
    weights: str | Path | None = None,
) -> Path:
    """
    Save a wrapper's adapter so that `RMForMaskedDiffusion.from_pretrained(folder)` restores the base, the history and
    generation settings and the adapter; likewise `AutoModel`, and without this package with `trust_remote_code=True`.

    The config and code are at the root, the adapter itself in `adapter/`: with `adapter_config.json` at the root,
    transformers would go to the base and never see the wrapper's config.

    Args:
        model ([`RMForMaskedDiffusion`] or `PeftModel`): a wrapper with an adapter, by `get_peft_model` or
            `add_adapter`. With several adapters the active one is saved.
        folder (`str` or `Path`): where to; files of the same names are replaced.
        tokenizer (*optional*): saved beside it.
        base_model (`str`, *optional*): Hub name of the base; by default what the model was loaded from: the saved
            wrapper, or else the backbone.
        base_revision (`str`, *optional*): its commit, branch or tag; by default the commit that was loaded.
        weights (`str` or `Path`, *optional*): a folder with the saved adapter, which is copied; the model's own
            otherwise.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: for a model without an adapter, without a known base, or whose position groups are stored neither
            in the base nor in the adapter.

    Example:
        >>> import tempfile
        >>> from peft import LoraConfig, get_peft_model
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> bert = BertForMaskedLM(BertConfig(vocab_size=120, hidden_size=16, num_hidden_layers=1,
        ...                                   num_attention_heads=2, intermediate_size=32))
        >>> model = RMForMaskedDiffusion.from_backbone(bert, mask_token_id=103)
        >>> adapted = get_peft_model(model, LoraConfig(target_modules=["query", "value"]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = save_adapter_for_hub(adapted, folder, base_model="user/tiny-bert")
        ...     sorted(path.name for path in (saved / "adapter").iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    wrapper, name = unwrap(model), active_adapter(model)
    base, revision = (base_model, base_revision) if base_model else base_of(wrapper)
    if not base:
        raise ValueError("The model's base is unknown (it was built in memory): save it and pass base_model=.")
    tensors = _adapter_tensors(model, name) if weights is None else load_file(Path(weights) / _ADAPTER_WEIGHTS)
    _check_own_parts(wrapper, base_model, tensors)
    target = Path(folder) / ADAPTER_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / _ADAPTER_WEIGHTS, metadata={"format": "pt"})
    peft_config = copy.deepcopy(wrapper.peft_config[name])
    peft_config.inference_mode = True
    peft_config.base_model_name_or_path, peft_config.revision = base, base_revision or revision
    peft_config.auto_mapping = None  # it would name a module of this package
    peft_config.save_pretrained(target)
    _adapter_root_config(wrapper, base, base_revision or revision).save_pretrained(folder)
    wrapper.generation_config.save_pretrained(folder)
    _finish(Path(folder), tokenizer)
    return Path(folder)


def unwrap(model: Any) -> RMForMaskedDiffusion:
    """The wrapper itself, inside a `PeftModel` or not; a ValueError for anything else."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, RMForMaskedDiffusion):
        raise ValueError(
            f"`model` is a {type(inner).__name__}, not a RMForMaskedDiffusion: wrap it with "
            "RMForMaskedDiffusion.from_backbone first."
        )
    return inner


def has_adapter(model: Any) -> bool:
    """Whether the wrapper, or the `PeftModel` around it, has an adapter."""
    return bool(_adapter_names(unwrap(model)))


def active_adapter(model: Any) -> str:
    """The name of the one active adapter; a ValueError when there is none or several."""
    names = _adapter_names(unwrap(model))
    if not names:
        raise ValueError("`model` has no adapter: train one (peft_config=), or save the full model with save_for_hub.")
    if len(names) > 1:
        raise ValueError(f"`model` has several active adapters, {', '.join(names)}: activate one (set_adapter).")
    return names[0]


def _adapter_names(wrapper: Any) -> list[str]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = (module for module in wrapper.modules() if isinstance(module, BaseTunerLayer))
    return sorted({name for layer in layers for name in layer.active_adapters})


def is_local(name: str) -> bool:
    """Whether a base's name is a folder of this machine, or no name that the Hub could have."""
    if os.path.exists(name) or os.path.isabs(name):
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return False


def refuse_pickles(folder: str | Path) -> None:
    """A ValueError that names the pickles in a folder that is about to be published."""
    pickles = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.suffix in PICKLES)
    if pickles:
        raise ValueError(
            f"{', '.join(pickles)} in {str(folder)!r}: pickles run code when they are opened and are not published; "
            "delete them, and save tensors as safetensors and arguments as JSON."
        )


def _finish(folder: Path, tokenizer: Any) -> None:
    export_code(folder)
    if tokenizer is not None:
        for name in ("is_local", "local_files_only"):  # how it was loaded, which newer transformers would write down
            tokenizer.init_kwargs.pop(name, None)
        tokenizer.save_pretrained(folder)


def _adapter_tensors(model: Any, name: str) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    # "auto" would look for the base on the Hub to find out whether its vocabulary was resized.
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    prefix = "base_model.model."
    return {key if key.startswith(prefix) else prefix + key: value.contiguous() for key, value in state.items()}


def _check_own_parts(wrapper: Any, base_model: str | None, tensors: dict[str, Any]) -> None:
    """A ValueError where parts of the wrapper's own would be stored neither in the base nor in the adapter."""
    if wrapper.config.name_or_path or base_model:  # a saved wrapper
        return
    parts = {"position_group_embeddings": ("position groups", "weight"), "stream": ("a stream", "confidence.weight")}
    for part, (words, weight) in parts.items():
        stored = any(key.endswith(f"{part}.{weight}") for key in tensors)
        if getattr(wrapper, part, None) is not None and not stored:
            raise ValueError(
                f"The wrapper has {words} of its own, which its backbone does not hold: save the full model once "
                "(save_for_hub), load it again and train the adapter on that; or train it whole with the adapter "
                f"(modules_to_save=[{part!r}])."
            )


def _adapter_root_config(wrapper: Any, base: str, revision: str | None) -> Any:
    config = copy.deepcopy(wrapper.config)
    config.auto_map, config.architectures = auto_map(wrapper), [type(wrapper).__name__]
    config.backbone_name, config.backbone_revision = base, revision
    # How the base was quantized here is up to whoever loads it there.
    for part in (config, config.text_config):
        part.__dict__.pop("quantization_config", None)
    return config
