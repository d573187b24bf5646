# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation of text leaves: a record a sample, what they come to, and what the results depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..generation_config_rm import DEFAULTS, ReflectiveGenerationConfig
from ..tasks.text import TextSample
from .record_log import RECORDS_FILE as RECORDS_FILE
from .record_log import content_digest, weights_digest
from .statistics import Interval, mean_interval, paired_bootstrap, paired_difference_interval, wilson_interval

Grade = Callable[..., Any]


@dataclass(frozen=True)
class TextRecord:
    """What one sample came to.

    Attributes:
        key: The sample's.
        group: The sample's.
        completion: The text up to the first end token.
        correct: The grader's verdict.
        forwards: Forward passes.
        remasks: How often a token was taken back to the mask.
        edits: How often a token was replaced outright.
        converged: Whether decoding ended because nothing was left to do, rather than at a limit.
        ids: The final canvas.
        too_long: The sample does not fit into the model's context; it was not decoded, and counts as wrong.
        draft: With `revision=True` the text at the first complete draft, None where there was none.
        draft_correct: The grader's verdict on it.
        draft_forwards: Forward passes up to it.
        taken_back: Positions where a token was taken back, and those of them where the same token came back.
        reference: Against the sample's own completion: tokens taken back that were wrong, tokens taken back, mistakes,
            positions where a wrong token came back, positions where one was taken back. None without a reference.

    Example:
        >>> TextRecord("1", "", "#### 5", True, 8, 0, 0, True, (3, 4)).too_long
        False
    """

    key: str
    group: str
    completion: str
    correct: bool
    forwards: int
    remasks: int
    edits: int
    converged: bool
    ids: tuple[int, ...]
    too_long: bool = False
    draft: str | None = None
    draft_correct: bool | None = None
    draft_forwards: int | None = None
    taken_back: tuple[int, int] | None = None
    reference: tuple[int, int, int, int, int] | None = None


class RevisionSeen(NamedTuple):
    """What revision did to the answers. Every rate says how many observations it rests on.

    Attributes:
        draft_accuracy: Share of right answers at the first complete draft.
        to_right: Of the answers with a complete draft, the share that was wrong in it and is right at the end.
        to_wrong: The share that was right in it and is wrong at the end.
        remasks: Tokens taken back a sample.
        replays: Of the positions where a token was taken back, the share where the same token came back.
        precision: Of the tokens taken back, the share that differed from the reference completion.
        recall: Of the tokens that differed from it, the share taken back.
        replay_mistake: Of the positions where such a token was taken back, the share where it came back.

    Example:
        >>> evaluation.revision.to_right.value  # doctest: +SKIP
        0.042
    """

    draft_accuracy: Interval
    to_right: Interval
    to_wrong: Interval
    remasks: Interval
    replays: Interval
    precision: Interval
    recall: Interval
    replay_mistake: Interval


@dataclass(frozen=True)
class TextEvaluation:
    """The result of [`evaluate_text`], in the order of the samples.

    Attributes:
        name: What tables call it.
        records: One a sample.
        decoding: The settings that it was decoded with.
        seed: The seed.

    Example:
        >>> one = TextRecord("1", "", "#### 5", True, 8, 0, 0, True, ())
        >>> TextEvaluation("sft", (one,), {}, 0).accuracy.value
        1.0
    """

    name: str
    records: tuple[TextRecord, ...]
    decoding: dict[str, Any]
    seed: int

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(n,) the verdicts."""
        return np.array([record.correct for record in self.records], dtype=bool)

    @property
    def accuracy(self) -> Interval:
        """Share of right answers with Wilson's interval."""
        return wilson_interval(int(self.correct.sum()), len(self.records))

    @property
    def forwards(self) -> Interval:
        """Forward passes a sample; those that were too long took none and are left out."""
        return mean_interval([record.forwards for record in self.records if not record.too_long])

    @property
    def too_long(self) -> tuple[str, ...]:
        """Keys of the samples that do not fit into the model's context."""
        return tuple(record.key for record in self.records if record.too_long)

    def by_group(self) -> dict[str, Interval]:
        """Accuracy within each group, in the order of the groups' names (numbers by value)."""
        verdicts: dict[str, list[bool]] = {}
        for record in self.records:
            verdicts.setdefault(record.group, []).append(record.correct)
        order = sorted(verdicts, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
        return {name: wilson_interval(sum(verdicts[name]), len(verdicts[name])) for name in order}

    @property
    def revision(self) -> RevisionSeen | None:
        """What revision did; None for a run without `revision=True`."""
        if not any(record.taken_back for record in self.records):
            return None
        drafts = [record for record in self.records if record.draft_correct is not None]
        returned = _sums([record.taken_back for record in self.records], 2)
        against = _sums([record.reference for record in self.records], 5)
        share = lambda test: wilson_interval(sum(map(test, drafts)), len(drafts))  # noqa: E731
        return RevisionSeen(
            share(lambda record: record.draft_correct),
            share(lambda record: not record.draft_correct and record.correct),
            share(lambda record: record.draft_correct and not record.correct),
            mean_interval([record.remasks + record.edits for record in self.records if not record.too_long]),
            wilson_interval(returned[1], returned[0]),
            wilson_interval(against[0], against[1]),
            wilson_interval(against[0], against[2]),
            wilson_interval(against[3], against[4]),
        )

    def minus(self, other: TextEvaluation, method: str = "bootstrap", seed: int = 0) -> Interval:
        """
        The difference in accuracy to another system on the same samples.

        Args:
            other: Its evaluation.
            method: ``"bootstrap"`` resamples the samples, ``"normal"`` is the closed form.
            seed: Of the resampling.

        Returns:
            This accuracy less the other's, with its interval.

        Raises:
            ValueError: For other samples, or an unknown method.
        """
        if method not in ("bootstrap", "normal"):
            raise ValueError(f"method is {method!r}; pass 'bootstrap' or 'normal'.")
        verdicts = {record.key: record.correct for record in other.records}
        keys = [record.key for record in self.records]
        if set(keys) != set(verdicts):
            raise ValueError(f"{self.name!r} and {other.name!r} were evaluated on different samples; pass the same.")
        theirs = [verdicts[key] for key in keys]
        if method == "normal":
            return paired_difference_interval(self.correct, theirs)
        return paired_bootstrap(self.correct, theirs, seed)

    def summary(self) -> dict[str, Any]:
        """All that is reported, as a JSON-ready dict: estimates, and their ends under ``_low`` and ``_high``."""
        found: dict[str, Any] = {"name": self.name, "seed": self.seed, "samples": len(self.records)}
        found |= _flat("accuracy", self.accuracy) | _flat("forwards", self.forwards)
        found["too_long"] = len(self.too_long)
        found["not_converged"] = sum(not record.converged for record in self.records if not record.too_long)
        found["by_group"] = {name: _flat("accuracy", rate) for name, rate in self.by_group().items()}
        if self.revision is not None:
            found["revision"] = {}
            for name, interval in self.revision._asdict().items():
                found["revision"] |= _flat(name, interval)
        return found


def _flat(name: str, interval: Interval) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_count"), interval, strict=True))


def _sums(rows: Sequence[tuple[int, ...] | None], width: int) -> list[int]:
    return np.array([row for row in rows if row is not None], dtype=np.int64).reshape(-1, width).sum(axis=0).tolist()


# What a run's results depend on


def fingerprint(
    model: Any,
    tokenizer: Any,
    samples: Sequence[TextSample],
    prompts: Sequence[Sequence[int]],
    grade: Grade,
    config: ReflectiveGenerationConfig,
    seed: int,
    revision: bool,
) -> dict[str, Any]:
    """What an evaluation's results depend on. Of the grader only the name is known."""
    contents = [[*asdict(sample).values(), list(ids)] for sample, ids in zip(samples, prompts, strict=True)]
    return {
        "weights": weights_digest(model),
        "samples": content_digest(contents),
        "tokenizer": content_digest([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id]),
        "grade": getattr(grade, "__qualname__", type(grade).__qualname__),
        "seed": seed,
        "revision": revision,
        **{f"decoding.{name}": value for name, value in settings_of(config).items()},
    }


def settings_of(config: ReflectiveGenerationConfig) -> dict[str, Any]:
    """The settings that are not the defaults."""
    values = {name: getattr(config, name) for name in DEFAULTS}
    return {name: value for name, value in values.items() if value != DEFAULTS[name]}
