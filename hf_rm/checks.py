# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Settings that nothing can be done with are refused by name before anything is computed."""

from __future__ import annotations

from math import inf, isfinite
from numbers import Integral, Real
from typing import Any


def check_number(name: str, value: Any, low: float, high: float, what: str, kind: Any = Real) -> None:
    """
    Raise a ValueError unless `value` is a finite number from `low` to `high`.

    Args:
        name (`str`): of the argument.
        value: of it.
        low, high (`float`): the bounds, both allowed.
        what (`str`): the remedy, as what is to be passed.
        kind (`type`, defaults to `Real`): of the number; `Integral` refuses fractions, `int` NumPy's integers as well.

    Example:
        >>> check_number("batch_size", 0, 1, inf, "1 or more", Integral)
        Traceback (most recent call last):
        ...
        ValueError: `batch_size` is 0: pass 1 or more.
    """
    number = isinstance(value, kind) and not isinstance(value, bool)
    if not number or not isfinite(value) or not low <= value <= high:
        raise ValueError(f"`{name}` is {value!r}: pass {what}.")


def check_probabilities(settings: Any, *names: str) -> None:
    """Raise a ValueError for the first of these attributes that is no probability."""
    for name in names:
        check_number(name, getattr(settings, name), 0.0, 1.0, "a probability from 0 to 1")


def check_counts(settings: Any, *names: str, least: int = 0) -> None:
    """Raise a ValueError for the first of these attributes that is no whole number of `least` or more."""
    for name in names:
        check_number(name, getattr(settings, name), least, inf, f"a whole number, {least} or more", Integral)


def check_weight(name: str, value: Any) -> None:
    """Raise a ValueError for the weight of a loss that is negative, or no finite number."""
    check_number(name, value, 0.0, inf, "0 (off) or more, a finite number")


def check_scale(name: str, value: Any) -> None:
    """Raise a ValueError for a scale of guidance that is no finite number."""
    check_number(name, value, -inf, inf, "a finite number, 0 for no guidance by it")
