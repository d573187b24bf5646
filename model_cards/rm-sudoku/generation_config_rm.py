# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""ReflectiveGenerationConfig: every setting of the decoding loop, validated before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence, Set
from numbers import Integral, Real
from typing import Any

from transformers import GenerationConfig

from .generation_revision_rm import REVISION_RULES
from .generation_rules_rm import REVEAL_RULES

DEFAULTS: dict[str, Any] = {
    "preset": None,
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
    "reveal_threshold": None,
    "reveal_factor": 1.0,
    "min_reveals_per_step": 1,
    "restrict_confidence": False,
    "temperature": 0.0,
    "top_k": None,
    "top_p": None,
    # which visible tokens are revised
    "revise": "reflective",
    "revise_threshold": None,
    "revise_scope": "block",
    "max_remasks_per_position": None,
    "max_remask_ratio": None,
    "min_remasks_per_step": 1,
    "max_remasks": None,
    "remdm_variant": "cap",
    "remdm_eta": 0.02,
    "remdm_window": (0.55, 0.05),
    "remdm_alpha": 0.9,
    # what the model reads
    "use_history": None,
    "use_cache": False,
    "guidance_scale": 1.0,
    # the end of a text
    "stop_at_eos": False,
    "suppress_eos": False,
    "delay_eos": False,
    # what comes back
    "output_trajectory": False,
    # special tokens
    "mask_token_id": None,
    "pad_token_id": None,
    "eos_token_id": None,
    "bos_token_id": None,
    "suppressed_token_ids": None,
}
_LIMITS = ("max_remasks_per_position", "max_remask_ratio", "max_remasks", "revise_threshold", "max_revision_rounds")
_METADATA = ("_commit_hash", "_from_model_config", "transformers_version")

_TRAINING_FREE: dict[str, Any] = {"use_history": False, "temperature": 0.0}
# LLaDA2.x: blocks of 32, masks above a threshold at once, at most 16 steps after the last mask of a block.
_LLADA2 = {"block_length": 32, "reveal": "threshold", "reveal_threshold": 0.7, "max_revision_rounds": 16}
_T2M = {**_TRAINING_FREE, **_LLADA2, "max_remasks_per_position": 1, "max_remask_ratio": 0.25}

PRESETS: dict[str, dict[str, Any]] = {
    "rm-paper": {"reveal": "all", "revise": "reflective"},
    "llada": {**_TRAINING_FREE, "reveal": "confidence", "revise": None, "restrict_confidence": True},
    "fast-dllm": {
        **_TRAINING_FREE, "block_length": 32, "reveal": "threshold", "reveal_threshold": 0.9, "revise": None,
        "restrict_confidence": True,
    },
    "t2m-lowprob": {**_T2M, "revise": "low_prob", "revise_threshold": 0.3},
    "t2m-t2t-remask": {**_T2M, "revise": "t2t_remask", "revise_threshold": 0.9},
    "t2m-logit-diff": {**_T2M, "revise": "logit_diff", "revise_threshold": 0.3},
    "llada2.1-quality": {**_TRAINING_FREE, **_LLADA2, "revise": "t2t", "revise_threshold": 0.5},
    "llada2.1-speed": {
        **_TRAINING_FREE, **_LLADA2, "reveal_threshold": 0.5, "revise": "t2t", "revise_threshold": 0.0
    },
    "remedi": {"use_history": False, "block_length": 32, "reveal": "policy", "revise": "policy"},
    "remdm-loop": {
        **_TRAINING_FREE, "temperature": 1.0, "reveal": "remdm", "revise": "remdm", "remdm_variant": "loop",
        "remdm_eta": 0.02, "remdm_window": (0.55, 0.05), "remdm_alpha": 0.9,
    },
}  # fmt: skip
"""Named settings. The training-free ones read no history: over weights that never saw one it is noise."""


class ReflectiveGenerationConfig(GenerationConfig):
    """
    Settings of [`~ReflectiveGenerationMixin.generate_reflective`].

    Args:
        preset (`str`, *optional*): settings by name, which any argument given beside it overrides: a key of `PRESETS`.
        max_new_tokens (`int`, *optional*): length of the canvas of masks appended to the input.
        block_length (`int`, *optional*): positions a block; blocks are finished one after another. None: one block, or
            under block-causal attention the blocks of the attention.
        editable (`str`, defaults to `"auto"`): what may change when no `editable_mask` is passed: `"auto"` the
            appended canvas and every mask in the input, `"all"` every position that is not padding.
        steps (`int`, *optional*): length of the reveal schedule over the whole canvas, for the rules that have one:
            `"confidence"`, `"margin"`, `"entropy"`, `"policy"`, `"remdm"`. None: one position a step.
        max_steps (`int`, *optional*): bound on the steps of a row. None: 64 more than 1 + `patience` times the
            schedule's steps.
        max_revision_rounds (`int`, *optional*): steps a block goes on after its last mask is gone. None: no bound.
        patience (`int`, defaults to 1): steps without a mask and without a change after which a block has converged.
        reveal (`str`, defaults to `"all"`): the reveal rule, a key of `REVEAL_RULES`.
        reveal_threshold (`float`, *optional*): for `reveal="threshold"`: reveal where the probability is above; by
            default 0.9.
        reveal_factor (`float`, defaults to 1): for `reveal="factor"`.
        min_reveals_per_step (`int`, defaults to 1): for these two: so many most confident masks anyway.
        restrict_confidence (`bool`, defaults to `False`): take probabilities among the tokens that may be written,
            not among all with the mask and reserved ids.
        temperature (`float`, defaults to 0): 0 takes the argmax, anything else samples (and then needs no more than a
            `generator` to be reproducible).
        top_k (`int`, *optional*), top_p (`float`, *optional*): truncation while sampling.
        revise (`str` or None, defaults to `"reflective"`): the revision rule, a key of `REVISION_RULES`; None never
            revises.
        revise_threshold (`float`, *optional*): of the rules that have one; by default the rule's own.
        revise_scope (`str`, defaults to `"block"`): `"block"` revises the active block, `"all"` every block up to it.
        max_remasks_per_position (`int`, *optional*): revisions a position may suffer within its block.
        max_remask_ratio (`float`, *optional*): share of the visible editable tokens of the block that one step may
            revise, rounded down, but at least `min_remasks_per_step` (1).
        max_remasks (`int`, *optional*): revisions a row may suffer in all.
        remdm_variant (`str`): `"cap"`, `"rescale"`, `"conf"` or `"loop"`; remdm_eta (`float`), remdm_window (two
            times), remdm_alpha (`float`): of ReMDM.
        use_history (`bool`, *optional*): whether the model reads its earlier states. None: as it was trained.
        use_cache (`bool`, defaults to `False`): keep keys and values of finished blocks; needs block-causal attention.
        guidance_scale (`float`, defaults to 1): classifier-free guidance, u + scale (c - u); 1 is off. The
            unconditional branch has masks in place of the prompt.
        stop_at_eos (`bool`, defaults to `False`): a row is over with the first block that holds an end token, and what
            follows that token becomes padding.
        suppress_eos (`bool`, defaults to `False`): never reveal an end token.
        delay_eos (`bool`, defaults to `False`): reveal end tokens after all others.
        output_trajectory (`bool`, defaults to `False`): record every state and action.
        mask_token_id, eos_token_id, pad_token_id (`int`, *optional*): by default the model's.
        suppressed_token_ids (`list[int]`, *optional*): ids that are never revealed, on top of the model's.

    Raises:
        ValueError: for an unknown argument, a value out of range, or settings that contradict each other.

    Example:
        >>> ReflectiveGenerationConfig(preset="fast-dllm", reveal_threshold=0.8).revise is None
        True
    """

    def __init__(self, **kwargs: Any) -> None:
        # The parent's constructor is left out on purpose: it would add the settings of autoregressive decoding.
        self.preset = kwargs.pop("preset", None)
        self._check_choice("preset", (*PRESETS, None))
        base = {**DEFAULTS, **PRESETS.get(self.preset or "", {}), "preset": self.preset}
        if kwargs.get("reveal", base["reveal"]) != base["reveal"]:
            base["reveal_threshold"] = None  # it belongs to the preset's rule
        for name, default in base.items():
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
        for name in ("max_revision_rounds", "max_remasks_per_position", "min_remasks_per_step", "max_remasks"):
            self._check_integer(name, minimum=0)
        self._check_integer("top_k", minimum=1)
        for name in ("reveal_threshold", "revise_threshold", "max_remask_ratio", "top_p", "remdm_eta", "remdm_alpha"):
            self._check_number(name, 0.0, 1.0)
        for name in ("temperature", "reveal_factor", "guidance_scale"):
            self._check_number(name, 0.0, float("inf"))
        for name, default in DEFAULTS.items():
            if isinstance(default, bool) or name == "use_history":
                self._check_choice(name, (True, False) if default is not None else (True, False, None))
        self._check_choice("reveal", tuple(REVEAL_RULES))
        self._check_choice("revise", (*REVISION_RULES, None))
        self._check_choice("revise_scope", ("block", "all"))
        self._check_choice("editable", ("auto", "all"))
        self._check_choice("remdm_variant", ("cap", "rescale", "conf", "loop"))
        ids: Any = () if self.suppressed_token_ids is None else self.suppressed_token_ids
        if not isinstance(ids, (Sequence, Set)) or any(type(i) is bool or not isinstance(i, Integral) for i in ids):
            raise ValueError(f"`suppressed_token_ids` is {ids!r}: pass a list of token ids, integers.")
        self._check_remdm()
        self._check_contradictions()

    def _check_remdm(self) -> None:
        window: Any = self.remdm_window
        if not (isinstance(window, (list, tuple)) and len(window) == 2 and 1 > window[0] > window[1] > 0):
            raise ValueError(f"`remdm_window` is {window!r}: pass two times 1 > on > off > 0, such as (0.55, 0.05).")
        self.remdm_window: Any = tuple(window)

    def _check_contradictions(self) -> None:
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError("`top_k` and `top_p` need sampling, but `temperature` is 0: pass a temperature above 0.")
        if self.steps is not None and not REVEAL_RULES[self.reveal].follows_schedule:
            raise ValueError(
                f'`steps` is {self.steps}, but reveal="{self.reveal}" follows no schedule: leave `steps` out or pass '
                'reveal="confidence". `max_steps` bounds a run under any rule.'
            )
        if self.reveal_threshold is not None and self.reveal != "threshold":
            raise ValueError(
                f'`reveal_threshold` is {self.reveal_threshold}, but reveal="{self.reveal}" has no threshold: pass '
                'reveal_threshold=None or reveal="threshold".'
            )
        given = [name for name in _LIMITS if getattr(self, name) is not None]
        if self.revise is None and given:
            raise ValueError(f"`{'`, `'.join(given)}` contradict revise=None: pass None or name a revision rule.")
        threshold = self.revise_threshold
        if threshold is not None and self.revise is not None and REVISION_RULES[self.revise].threshold is None:
            raise ValueError(
                f'`revise_threshold` is {threshold}, but revise="{self.revise}" has no threshold: leave it out.'
            )
        for name in ("policy", "remdm"):
            if (self.reveal == name) != (self.revise == name):
                raise ValueError(
                    f'`reveal` is {self.reveal!r} and `revise` {self.revise!r}: the rules named "{name}" are one '
                    "method's two halves and go together."
                )
        if self.suppress_eos and (self.delay_eos or self.stop_at_eos):
            raise ValueError("`suppress_eos` contradicts `delay_eos` and `stop_at_eos`: pass one or the other.")
        if self.delay_eos and self.reveal in ("all", "policy", "remdm"):
            raise ValueError(
                f'`delay_eos` is True, but reveal="{self.reveal}" puts no token behind another: leave it out or pass '
                'reveal="confidence".'
            )

    def _check_integer(self, name: str, minimum: int) -> None:
        self._check_number(name, minimum, float("inf"), Integral, f"an integer of at least {minimum}")

    def _check_number(self, name: str, low: float, high: float, kind: Any = Real, what: str = "") -> None:
        value = getattr(self, name)
        if value is None and DEFAULTS[name] is None:
            return
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            raise ValueError(f"`{name}` is {value!r}: pass {what or f'a number from {low} to {high}'}.")
        setattr(self, name, int(value) if isinstance(value, Integral) else float(value))  # not NumPy's, for JSON

    def _check_choice(self, name: str, choices: tuple[str | bool | None, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise ValueError(f"`{name}` is {value!r}: pass one of {', '.join(map(repr, choices))}.")

    def updated(self, **changes: Any) -> ReflectiveGenerationConfig:
        """
        A validated copy with some settings changed; unknown names are refused.

        A new preset replaces what the old one and the defaults said, and a reveal or revision rule that was set by
        hand, with its threshold: rules are what it is a name for. Other settings made by hand stay.
        """
        values, preset = self._by_hand(), changes.get("preset", self.preset)
        for rule in ("reveal", "revise"):
            if preset != self.preset and rule in values and rule in PRESETS.get(str(preset), {}):
                values = {name: value for name, value in values.items() if name not in (rule, f"{rule}_threshold")}
        return type(self)(**{**values, **changes})

    def _by_hand(self) -> dict[str, Any]:
        """The settings that neither the defaults nor the preset explain."""
        base = {**DEFAULTS, **PRESETS.get(self.preset or "", {})}
        return {name: getattr(self, name) for name in DEFAULTS if getattr(self, name) != base[name]}

    def to_diff_dict(self) -> dict[str, Any]:
        """The settings that differ from the defaults and the preset: what `generation_config.json` holds."""
        return {**self._by_hand(), "transformers_version": self.to_dict()["transformers_version"]}

    def get_generation_mode(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("ReflectiveGenerationConfig has no autoregressive generation mode.")

    @classmethod
    def from_model_config(cls, *args: Any, **kwargs: Any) -> GenerationConfig:
        # transformers falls back to the plain constructor on this error.
        raise NotImplementedError("ReflectiveGenerationConfig is not derived from a model's config.")
