# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
The Hub: full models and adapters with code, settings, card and results, in one commit; and back in one call.

    push(model, "user/name", card=CardFacts(...))                    # a wrapper, or the adapter it carries
    RMForMaskedDiffusion.from_pretrained("user/name")                # either of them
    AutoModel.from_pretrained("user/name", trust_remote_code=True)   # either, where hf_rm is not installed
"""

from __future__ import annotations

from typing import Any

from ..modeling_rm import RMForMaskedDiffusion
from .cards import CardFacts, Evaluation, card_metadata, render_card, write_model_card
from .layout import AUTO_MAP, CODE_FILES, export_code, refuse_pickles, save_adapter_for_hub, save_for_hub
from .publish import push, push_folder

__all__ = [
    "AUTO_MAP",
    "CODE_FILES",
    "CardFacts",
    "Evaluation",
    "card_metadata",
    "export_code",
    "load_adapter",
    "push",
    "push_folder",
    "refuse_pickles",
    "render_card",
    "save_adapter_for_hub",
    "save_for_hub",
    "write_model_card",
]


def load_adapter(model: Any, name: str, adapter_name: str = "default", **kwargs: Any) -> Any:
    """
    Load an adapter from the Hub or a folder into a wrapper that is already there.

    Args:
        model ([`RMForMaskedDiffusion`]): made from the base that the adapter was trained on.
        name (`str`): a Hub name or a folder.
        adapter_name (`str`, defaults to `"default"`): what it is called in the model.
        kwargs: as for `RMForMaskedDiffusion.load_adapter`: `revision`, `token`, `is_trainable`, `check_base`.

    Returns:
        The model.

    Raises:
        ValueError: for a bare backbone, and for an adapter that was made for another base.
        OSError: when there is no such adapter.
    """
    if not isinstance(model, RMForMaskedDiffusion):
        raise ValueError(
            f"`model` is a {type(model).__name__}, a bare backbone: the adapter was trained with the wrapper "
            f"around it. Load both with RMForMaskedDiffusion.from_pretrained({name!r})."
        )
    model.load_adapter(name, adapter_name, **kwargs)
    return model
