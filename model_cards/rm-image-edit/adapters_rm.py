# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
An adapter's repository: the wrapper's config at its root, the adapter in `adapter/`, the base somewhere else.

    config.json: history settings, base -> base: a backbone, or a saved wrapper -> wrapper -> adapter/ -> settings

The adapter is not at the root, where transformers would follow it to its base and never see the wrapper's config.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedConfig
from transformers.utils import cached_file, extract_commit_hash, is_peft_available

from .configuration_rm import WRAPPER_TYPES, RMConfig
from .families_rm import load_backbone

ADAPTER_FOLDER = "adapter"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Where files are found and how they are fetched: the same for an adapter and for its base, except for the revision.
_WHERE = ("cache_dir", "force_download", "proxies", "local_files_only", "token")
HUB_ARGUMENTS = (*_WHERE, "revision")
# For the base's weights, never for a config: transformers would write them into it.
_LOADING = ("dtype", "torch_dtype", "device_map", "max_memory", "quantization_config", "attn_implementation")
_COMPARED = "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
_WRONG = ("missing_keys", "unexpected_keys", "mismatched_keys")
_QUANTIZED = ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit")


def _file(name: Any, file: str, folder: str, **where: Any) -> Path | None:
    try:
        found = cached_file(name, file, subfolder=folder, _raise_exceptions_for_missing_entries=False, **where)
    except OSError as error:
        status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        # No subclass of it: those are for what is missing.
        if status in (401, 403) and type(error.__cause__).__name__ == "HfHubHTTPError":
            raise OSError(
                f"The Hub refused the token for {str(name)!r} ({status}): pass token= with access to it, or run "
                "`hf auth login`."
            ) from error
        raise
    return None if found is None else Path(found)


def find_adapter(name: Any, folder: str = ADAPTER_FOLDER, **where: Any) -> Path | None:
    """The `adapter_config.json` in that folder of a repository or local folder; None where there is none."""
    return None if name is None else _file(name, _CONFIG, folder, **where)


def refuse_plain_adapter(name: Any, **where: Any) -> None:
    """A ValueError for an adapter at the root whose base is a backbone: its history settings are recorded nowhere."""
    adapter = find_adapter(name, "", **where)
    base = None if adapter is None else json.loads(adapter.read_text()).get("base_model_name_or_path")
    if adapter is None or _is_wrapper(base, **{**where, "revision": None}):
        return
    raise ValueError(
        f"{str(name)!r} holds an adapter without the wrapper's config (its base is {base!r}), so its history settings "
        "are unknown: wrap the base with RMForMaskedDiffusion.from_backbone and the settings of its training, then "
        "call load_adapter; hf_rm.hub.save_adapter_for_hub writes a folder that holds them."
    )


def _is_wrapper(name: str | None, **where: Any) -> bool:
    return bool(name) and PreTrainedConfig.get_config_dict(name, **where)[0].get("model_type") in WRAPPER_TYPES


def commit_of(name: str | None, revision: str | None = None, cache_dir: Any = None) -> str | None:
    """The commit that the cached config of a Hub name belongs to; None for a local folder or what is not cached."""
    if not name or Path(name).exists():
        return None
    options = {"cache_dir": cache_dir, "revision": revision, "local_files_only": True}
    try:
        path = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False, **options)
    except (OSError, ValueError):
        return None
    return extract_commit_hash(path, None)


def base_of(model: Any) -> tuple[str | None, str | None]:
    """Name and commit of what a wrapper's weights came from: a saved wrapper, or else the backbone."""
    name = model.config.name_or_path
    if name:
        return name, getattr(model, "base_commit", None)
    return model.config.backbone_name, model.config.backbone_revision


def load_with_adapter(cls: Any, name: Any, adapter: Path, **kwargs: Any) -> Any:
    """
    Restore base, wrapper, adapter and generation settings from an adapter's repository.

    Args:
        cls (type): the wrapper's class.
        name (`str` or `Path`): the repository or folder.
        adapter (`Path`): its adapter's config file, as [`find_adapter`] gives it.
        kwargs: those of `from_pretrained`. `revision` is the adapter's, the base's is in the config;
            `trust_remote_code` stays with the adapter, `base_trust_remote_code` is for its base; `base_model` loads
            the base from another place; `is_trainable` leaves the adapter trainable; all others are for the base's
            weights.

    Returns:
        The wrapper, or the wrapper and the loading report with `output_loading_info=True`.

    Raises:
        ValueError: for a base that is unknown, that is an adapter itself, or that the adapter was not made for.
        OSError: for files that are missing.
    """
    for unused in ("trust_remote_code", "adapter_kwargs", "_from_auto", "_from_pipeline", "subfolder"):
        kwargs.pop(unused, None)
    where = {key: kwargs.pop(key) for key in _WHERE if key in kwargs}
    own = {**where, "revision": extract_commit_hash(str(adapter), None) or kwargs.get("revision")}
    kwargs.pop("revision", None)
    options = {key: kwargs.pop(key, None) for key in ("adapter_name", "is_trainable")}
    report = kwargs.pop("output_loading_info", False)
    settings = kwargs.pop("generation_config", None)
    trust = bool(kwargs.pop("base_trust_remote_code", False))
    other_base = kwargs.pop("base_model", None)
    config = kwargs.pop("config", None)
    if config is None:
        loading = {key: kwargs.pop(key) for key in _LOADING if key in kwargs}
        config, kwargs = cls.config_class.from_pretrained(name, return_unused_kwargs=True, **own, **kwargs)
        kwargs |= loading
    if other_base or not config.backbone_name:
        config = copy.deepcopy(config)
        config.backbone_name, config.backbone_revision = other_base, None
    model = _load_base(cls, name, config, trust, where, kwargs)
    take_over_placement(model)
    model.adjust_generation_fn(settings, False, None, name, **{**_everywhere(where), **own}, subfolder="")
    # The base was checked by its sizes; by name it may be another one on purpose.
    trainable = bool(options["is_trainable"])
    info = model.load_adapter(name, options["adapter_name"], is_trainable=trainable, check_base=False, **own)
    model.peft_config[options["adapter_name"] or "default"].base_model_name_or_path = model.config.name_or_path
    return (model, info.to_dict()) if report else model


def _load_base(cls: Any, name: Any, config: RMConfig, trust: bool, where: dict[str, Any], kwargs: Any) -> Any:
    """The wrapper around the base that `config` names, without the adapter."""
    base, revision = config.backbone_name, config.backbone_revision
    if not base:
        raise ValueError(f"The config of {str(name)!r} names no base: pass base_model=, a Hub name or a folder.")
    if find_adapter(base, revision=revision, **where) is not None:
        raise ValueError(
            f"{base!r}, the base of {str(name)!r}, is an adapter's repository itself: merge that adapter, save the "
            "full model and pass it as base_model=."
        )
    values, _ = PreTrainedConfig.get_config_dict(base, revision=revision, **where)
    if values.get("model_type") in WRAPPER_TYPES:  # a saved wrapper: our own class, whatever code lies beside it
        _check_base(config, cls.config_class.from_dict(values), base, name)
        model = cls.from_pretrained(base, config=config, revision=revision, **where, **kwargs)
    else:
        if config.position_groups is not None:
            raise ValueError(
                f"{str(name)!r} has position groups, whose embeddings the backbone {base!r} does not hold: pass "
                "base_model=, a saved wrapper that has them."
            )
        try:
            backbone = load_backbone(base, revision=revision, trust_remote_code=trust, **where, **kwargs)
        except ValueError as error:
            if trust or "trust_remote_code" not in str(error):
                raise
            raise ValueError(
                f"{base!r}, the base of {str(name)!r}, has code of its own, and trust in an adapter is not trust in "
                "its base: read that code, then pass base_trust_remote_code=True."
            ) from error
        _check_base(config, backbone.config, base, name)
        config = copy.deepcopy(config)
        config.text_config = copy.deepcopy(backbone.config)
        model = cls(config, backbone=backbone)
        model.config.name_or_path = ""  # PEFT takes the config at that name for one of this class; see `base_of`
    return model.eval()


def _everywhere(where: dict[str, Any]) -> dict[str, Any]:
    return {**dict.fromkeys(_WHERE), "force_download": False, "local_files_only": False, **where}


def _check_base(config: RMConfig, base_config: PreTrainedConfig, base: str, name: Any) -> None:
    ours: Any = config.text_config.get_text_config()
    theirs: Any = base_config.get_text_config()  # of a saved wrapper: that of its backbone
    pairs = {key: (getattr(ours, key, None), getattr(theirs, key, None)) for key in _COMPARED}
    differing = [
        f"{key} is {theirs} there, {ours} was adapted" for key, (ours, theirs) in pairs.items() if ours != theirs
    ]
    if differing:
        raise ValueError(
            f"The adapter of {str(name)!r} was made for another base than {base!r}: {'; '.join(differing)}. Pass the "
            "base that it was trained on as base_model=."
        )


def take_over_placement(model: Any) -> None:
    """Let PEFT and Trainer see on the wrapper where and how the backbone's weights are held."""
    for key in _QUANTIZED:
        if getattr(model.model, key, None) and not getattr(model, key, None):
            setattr(model, key, getattr(model.model, key))
    devices = getattr(model.model, "hf_device_map", None)
    if devices is not None and not hasattr(model, "hf_device_map"):
        model.hf_device_map = {f"model.{key}".rstrip("."): device for key, device in devices.items()}


def load_adapter_strictly(
    model: Any, load: Any, name: Any, adapter_name: str | None, check_base: bool = True, **kwargs: Any
) -> Any:
    """
    Load an adapter into a wrapper, and raise where transformers warns.

    Args:
        model ([`RMForMaskedDiffusion`]): the wrapper.
        load (callable): transformers' `load_adapter`, bound to the model.
        name (`str` or `Path`): an adapter's repository or folder, with the adapter in `adapter/` or at its root.
        adapter_name (`str`, *optional*): the name it gets; `"default"` by default.
        check_base (`bool`, defaults to `True`): refuse an adapter whose recorded base is not the model's.
        kwargs: `revision`, `token`, `cache_dir` and so on for a Hub name, and further arguments of `load`.

    Returns:
        transformers' loading report.

    Raises:
        ImportError: without PEFT.
        OSError: when the adapter or its safetensors file is missing.
        ValueError: when the adapter was made for another base: by its record, or by its keys and shapes.
    """
    if not is_peft_available():
        raise ImportError(f"{str(name)!r} is an adapter: install peft to load it (pip install peft).")
    extra = kwargs.pop("adapter_kwargs", None) or {}
    where = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
    where |= {key: extra[key] for key in HUB_ARGUMENTS if key in extra}
    folders = (ADAPTER_FOLDER, "") if not extra.get("subfolder") else (extra["subfolder"],)
    for folder in folders:
        found = find_adapter(name, folder, **where)
        if found is not None:
            break
    else:
        raise OSError(f"{str(name)!r} holds no adapter: there is no {_CONFIG} at its root or in {ADAPTER_FOLDER}/.")
    weights = _file(name, _WEIGHTS, folder, **where)
    if weights is None:
        raise OSError(f"{str(name)!r} has an {_CONFIG} but no {_WEIGHTS} beside it: pickled adapters are not loaded.")
    recorded, (base, _) = json.loads(found.read_text()).get("base_model_name_or_path"), base_of(model)
    if check_base and recorded and base and recorded != base:
        raise ValueError(
            f"The adapter {str(name)!r} was made for {recorded!r}, and this model comes from {base!r}: load it with "
            "RMForMaskedDiffusion.from_pretrained, which fetches its base, or pass check_base=False if the two have "
            "the same weights."
        )
    adapter_name = adapter_name or "default"
    try:
        # Other shapes are an error too, but only the report names them.
        report = load(str(found.parent), adapter_name, ignore_mismatched_sizes=True, **kwargs)
    except ValueError as error:
        raise ValueError(f"The adapter {str(name)!r} does not fit this model: {error}") from error
    _complete(model, weights, adapter_name, report)
    found_wrong = {key: sorted(map(str, getattr(report, key))) for key in _WRONG}
    message = "; ".join(f"{key} {', '.join(keys[:3])}" for key, keys in found_wrong.items() if keys)
    if message:
        model.delete_adapter(adapter_name)
        raise ValueError(f"The adapter {str(name)!r} does not fit this model, it was made for another: {message}.")
    return report


def _complete(model: Any, weights: Path, adapter_name: str, report: Any) -> None:
    """
    Load and strike off the report what only seems to be missing.

    Token rows and whole modules that PEFT wraps, whose keys transformers 5.17, other than 5.18, does not know; and a
    tied head's rows, which are the embedding's and stored once.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with safe_open(weights, framework="pt") as file:
        stored = {key.removeprefix("base_model.model."): key for key in file.keys()}
        for name, module in model.named_modules() if report.missing_keys else ():
            keys: dict[str, str] = getattr(module, "adapter_state_dict_load_map", lambda _: {})(adapter_name)
            for old, new in ((f"{name}.{source}", f"{name}.{target}") for source, target in keys.items()):
                if new in report.missing_keys and old in stored:
                    parameters[new].data.copy_(file.get_tensor(stored[old]))
                    report.missing_keys.discard(new)
                    report.unexpected_keys -= {old, stored[old]}
    there = {id(value) for key, value in parameters.items() if key not in report.missing_keys}
    report.missing_keys -= {key for key in report.missing_keys if id(parameters.get(key)) in there}
