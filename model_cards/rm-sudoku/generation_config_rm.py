# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""ReflectiveGenerationConfig: every setting of the decoding loop, validated before anything is computed."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from .generation_rules_rm import REVEAL_RULES, REVISION_RULES

EDITABLE = ("auto", "all")

DEFAULTS: dict[str, Any] = {
    # the canvas
    "max_new_tokens": None,
    "block_length": None,
    "editable": "auto",
    # how long
    "steps": None,
    "max_steps": None,
    "max_revision_rounds": None,
    "patience": 1,
    # which masks are revealed
    "reveal": "all",
    "reveal_threshold": 0.9,
    "min_reveals_per_step": 1,
    "temperature": 0.0,
    "top_k": None,
    "top_p": None,
    # which visible tokens are revised
    "revise": "reflective",
    "max_remasks_per_position": None,
    "max_remask_ratio": None,
    "use_history": None,
    # what comes back
    "output_trajectory": False,
    # special tokens
    "mask_token_id": None,
    "pad_token_id": None,
    "eos_token_id": None,
    "bos_token_id": None,
    "suppressed_token_ids": None,
}
_METADATA = ("_commit_hash", "_from_model_config", "transformers_version")


class ReflectiveGenerationConfig(GenerationConfig):
    """
    Settings of [`~ReflectiveGenerationMixin.generate_reflective`].

    Args:
        max_new_tokens (`int`, *optional*): length of the canvas of masks appended to the input.
        block_length (`int`, *optional*): positions a block; blocks are finished one after another. None: one block.
        editable (`str`, defaults to `"auto"`): what may change when no `editable_mask` is passed: `"auto"` the
            appended canvas and every mask in the input, `"all"` every position that is not padding.
        steps (`int`, *optional*): length of the reveal schedule over the whole canvas, for `reveal="confidence"`,
            `"margin"` and `"entropy"`. None: one position a step.
        max_steps (`int`, *optional*): bound on the steps of a row. None: 64 more than 1 + `patience` times the
            schedule's steps.
        max_revision_rounds (`int`, *optional*): steps a block goes on after its last mask is gone. None: no bound.
        patience (`int`, defaults to 1): steps without a mask and without a change after which a block has converged.
        reveal (`str`, defaults to `"all"`): the reveal rule: `"all"`, `"threshold"`, `"confidence"`, `"margin"` or
            `"entropy"`.
        reveal_threshold (`float`, defaults to 0.9): for `reveal="threshold"`: reveal where the probability is above.
        min_reveals_per_step (`int`, defaults to 1): for `reveal="threshold"`: so many most confident masks anyway.
        temperature (`float`, defaults to 0): 0 takes the argmax, anything else samples (and then needs no more than a
            `generator` to be reproducible).
        top_k (`int`, *optional*), top_p (`float`, *optional*): truncation while sampling.
        revise (`str` or None, defaults to `"reflective"`): the revision rule; None never revises.
        max_remasks_per_position (`int`, *optional*): re-masks a position may suffer within its block.
        max_remask_ratio (`float`, *optional*): share of the visible editable tokens of the block that one step may
            re-mask (but at least one).
        use_history (`bool`, *optional*): whether the model reads its earlier states. None: as it was trained.
        output_trajectory (`bool`, defaults to `False`): record every state and action.
        mask_token_id (`int`, *optional*): by default the model's.
        suppressed_token_ids (`list[int]`, *optional*): ids that are never revealed, on top of the model's.

    Raises:
        ValueError: for an unknown argument, a value out of range, or settings that contradict each other.

    Example:
        >>> ReflectiveGenerationConfig(reveal="threshold", reveal_threshold=0.8).reveal_threshold
        0.8
    """

    def __init__(self, **kwargs: Any) -> None:
        # The parent's constructor is left out on purpose: it would add the settings of autoregressive decoding.
        for name, default in DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, default))
        for name in _METADATA:
            setattr(self, name, kwargs.pop(name, None))
        if kwargs:
            raise ValueError(
                f"Unknown generation argument(s) {', '.join(sorted(map(repr, kwargs)))}: pass any of "
                f"{', '.join(DEFAULTS)}."
            )
        self.validate()

    def validate(self, strict: bool = False, **unused: Any) -> None:
        """Raise a ValueError that names the first setting that cannot work, its value and the remedy."""
        for name in ("max_new_tokens", "block_length", "steps", "max_steps", "patience", "min_reveals_per_step"):
            self._check_integer(name, minimum=1)
        for name in ("max_revision_rounds", "max_remasks_per_position"):
            self._check_integer(name, minimum=0)
        self._check_integer("top_k", minimum=1)
        self._check_number("reveal_threshold", 0.0, 1.0)
        self._check_number("max_remask_ratio", 0.0, 1.0)
        self._check_number("top_p", 0.0, 1.0)
        self._check_number("temperature", 0.0, float("inf"))
        self._check_choice("reveal", tuple(REVEAL_RULES))
        self._check_choice("revise", (*REVISION_RULES, None))
        self._check_choice("editable", EDITABLE)
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError("`top_k` and `top_p` need sampling, but `temperature` is 0: pass a temperature above 0.")
        if self.steps is not None and not REVEAL_RULES[self.reveal].follows_schedule:
            raise ValueError(
                f'`steps` is {self.steps}, but reveal="{self.reveal}" follows no schedule: leave `steps` out or pass '
                'reveal="confidence". `max_steps` bounds a run under any rule.'
            )
        if self.revise is None and (self.max_remasks_per_position is not None or self.max_remask_ratio is not None):
            raise ValueError("re-mask limits contradict revise=None: leave them out or name a revision rule.")

    def _check_integer(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if value is None and DEFAULTS[name] is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"`{name}` is {value!r}: pass an integer of at least {minimum}.")

    def _check_number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if value is None and DEFAULTS[name] is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f"`{name}` is {value!r}: pass a number from {low} to {high}.")

    def _check_choice(self, name: str, choices: tuple[str | None, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise ValueError(f"`{name}` is {value!r}: pass one of {', '.join(map(repr, choices))}.")

    def updated(self, **changes: Any) -> ReflectiveGenerationConfig:
        """A validated copy with some settings changed; unknown names are refused."""
        values = {name: getattr(self, name) for name in DEFAULTS}
        return type(self)(**{**values, **changes})

    def to_diff_dict(self) -> dict[str, Any]:
        """The settings that differ from the defaults: what `generation_config.json` holds."""
        changed = {name: getattr(self, name) for name in DEFAULTS if getattr(self, name) != DEFAULTS[name]}
        return {**changed, "transformers_version": self.to_dict()["transformers_version"]}

    def get_generation_mode(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("ReflectiveGenerationConfig has no autoregressive generation mode.")

    @classmethod
    def from_model_config(cls, *args: Any, **kwargs: Any) -> GenerationConfig:
        # transformers falls back to the plain constructor on this error.
        raise NotImplementedError("ReflectiveGenerationConfig is not derived from a model's config.")
