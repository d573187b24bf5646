# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the Sudoku recipe, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from ...corruption.laws import LAWS, build_law
from ...training import RMTrainingArguments
from .boards import CELLS, MASK_ID, VOCAB_SIZE, load_real_boards
from .evaluate import DECODINGS
from .evaluation_set import Source
from .model import VARIANTS

POOL = "+pool"


@dataclass
class SudokuArguments:
    """Arguments of this recipe, beside those of RMTrainingArguments."""

    variants: list[str] = field(
        default_factory=lambda: ["hr-decay-her"],
        metadata={"help": f"Histories to train: any of {', '.join(VARIANTS)}."},
    )
    laws: list[str] = field(
        default_factory=lambda: ["attempts+pool"],
        metadata={"help": "Trajectory laws to train with, each with '+pool' for on-policy rows or without."},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Training seeds."})
    structured: bool = field(
        default=True, metadata={"help": "Row, column and box structure; otherwise full attention."}
    )
    num_layers: int = field(default=6, metadata={"help": "Layers of the network."})
    intermediate_size: int = field(default=240, metadata={"help": "Width of the feed-forward layers."})
    finish_steps: list[int] = field(
        default_factory=list, metadata={"help": "Steps of each finishing stage: mostly pool rows, which live longer."}
    )
    finish_pool_fraction: float = field(default=0.75, metadata={"help": "Share of pool rows in a finishing stage."})
    finish_pool_max_age: int = field(default=32, metadata={"help": "Steps a row stays in the pool there, at most."})
    revision_steps: int = field(default=256, metadata={"help": "Most steps of a revision, saved with the model."})
    revision_decoding: str = field(
        default="threshold",
        metadata={"help": f"How the saved model decodes where nothing else is said: one of {', '.join(DECODINGS)}."},
    )
    eval_only: str | None = field(
        default=None, metadata={"help": "Evaluate this model (a folder or Hub name) and stop."}
    )
    also_evaluate: list[str] = field(
        default_factory=list, metadata={"help": "Further models (folders or Hub names) for the table."}
    )
    eval_source: Literal["generated", "real"] = field(
        default="generated", metadata={"help": "Boards of the generator's test split, or published ones."}
    )
    eval_boards: int = field(default=1000, metadata={"help": "Boards of the evaluation set."})
    eval_seed: int = field(
        default=20261122,
        metadata={
            "help": "Seed of the evaluation set; training never sees it. The default is for development and "
            "ablations; a model that is published has one of its own (sudoku-final.yaml)."
        },
    )
    decodings: list[str] = field(
        default_factory=lambda: ["eq1", "threshold"], metadata={"help": f"Any of {', '.join(DECODINGS)}."}
    )
    ceiling_dir: str = field(
        default="benchmarks/results", metadata={"help": "Where sudoku_ceiling.py keeps its results."}
    )
    replay_boards: int = field(default=3, metadata={"help": "Boards shown in the HTML replay; 0 for none."})
    write_card: str | None = field(
        default=None,
        metadata={
            "help": "With eval_only: publish the model in this folder (it may be the same one), with its card, "
            "records.json and rounds.png, evaluated on as many generated boards and on the real ones."
        },
    )
    readme: str | None = field(
        default=None, metadata={"help": "A Markdown file whose tables between markers this run replaces."}
    )
    records: str | None = field(
        default=None, metadata={"help": "Another place for the records; by default records.json in output_dir."}
    )

    def __post_init__(self) -> None:
        self._check_names("variants", VARIANTS)
        self._check_names("decodings", DECODINGS)
        self._check_names("laws", [*LAWS, *(law + POOL for law in LAWS)])
        if self.revision_decoding not in DECODINGS:
            raise ValueError(f"`revision_decoding` is {self.revision_decoding!r}: pass one of {', '.join(DECODINGS)}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` is {self.seeds}: pass at least one, and none twice.")
        for name in ("num_layers", "intermediate_size", "finish_pool_max_age", "revision_steps", "eval_boards"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: pass a positive number.")
        if any(steps < 1 for steps in self.finish_steps):
            raise ValueError(f"`finish_steps` is {self.finish_steps}: pass positive numbers, or none of them.")
        if not 0.0 <= self.finish_pool_fraction < 1.0:
            raise ValueError(f"`finish_pool_fraction` is {self.finish_pool_fraction}: pass a share in [0, 1).")
        if self.replay_boards < 0:
            raise ValueError(f"`replay_boards` is {self.replay_boards}: pass a number of boards, or 0.")
        self._check_evaluation()

    def _check_names(self, argument: str, known: Sequence[str] | dict[str, Any]) -> None:
        given = getattr(self, argument)
        if not given or len(set(given)) < len(given) or not set(given) <= set(known):
            raise ValueError(f"`{argument}` is {given}: pass any of {', '.join(known)}, and none twice.")

    def _check_evaluation(self) -> None:
        if self.eval_source not in ("generated", "real"):
            raise ValueError(f"`eval_source` is {self.eval_source!r}: pass 'generated' or 'real'.")
        most = len(load_real_boards())
        if self.eval_source == "real" and self.eval_boards > most:
            raise ValueError(f"`eval_boards` is {self.eval_boards}, but there are {most} real boards: pass that many.")
        if not 0 <= self.eval_seed < 2**32:
            raise ValueError(f"`eval_seed` is {self.eval_seed}: pass an integer in 0..2**32-1.")
        if self.write_card is not None and (self.eval_only is None or self.eval_source != "generated"):
            raise ValueError(
                f"`write_card` is {self.write_card!r}, with `eval_only` {self.eval_only!r} and `eval_source` "
                f"{self.eval_source!r}: name the model in `eval_only` and leave `eval_source` out."
            )
        if self.readme is not None and not Path(self.readme).is_file():
            raise ValueError(f"`readme` is {self.readme!r}, which is no file: name one, or leave it out.")

    @property
    def evaluation_sets(self) -> list[tuple[Source, int]]:
        """Sources and numbers of boards that models are evaluated on."""
        if self.write_card is None:
            return [(self.eval_source, self.eval_boards)]
        return [("generated", self.eval_boards), ("real", min(self.eval_boards, len(load_real_boards())))]


def split_law(law: str) -> tuple[str, bool]:
    """
    The law's own name, and whether on-policy rows come with it.

    Example:
        >>> split_law("attempts+pool"), split_law("paper")
        (('attempts', True), ('paper', False))
    """
    return law.removesuffix(POOL), law.endswith(POOL)


def check_run(arguments: SudokuArguments, training: RMTrainingArguments) -> None:
    """
    What would stop a run after hours of training stops it now.

    Raises:
        ValueError: for settings that contradict each other, and for a model of another task.
        ImportError: without matplotlib.
        OSError: for a model that is not there.
    """
    if find_spec("matplotlib") is None:
        raise ImportError('The recipe plots accuracy against rounds with matplotlib: pip install "hf-rm[recipes]"')
    for name in [*arguments.also_evaluate, *([arguments.eval_only] if arguments.eval_only else [])]:
        try:
            config = AutoConfig.from_pretrained(name)
        except OSError as error:
            raise OSError(f"{name!r} is to be evaluated, but is neither a model's folder nor on the Hub.") from error
        _check_sudoku_model("also_evaluate" if name in arguments.also_evaluate else "eval_only", name, config)
    if arguments.eval_only is not None:
        return
    # No rows to train on would come of any of them.
    for setting in ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(training, setting) < 1:
            raise ValueError(f"`{setting}` is {getattr(training, setting)}: pass a positive number.")
    for law, pool in map(split_law, arguments.laws):
        build_law(law, training.horizon, training.max_attempts)
        if pool and not training.pool_fraction:
            raise ValueError(
                f"`laws` has {law + POOL!r}, but `pool_fraction` is 0: pass the pool's share of a batch, such as 0.5, "
                f"or {law!r}."
            )


def _check_sudoku_model(argument: str, name: str, config: Any) -> None:
    """Raise a ValueError where a configuration cannot be a Sudoku model's: its vocabulary, mask or positions."""
    inner = config.get_text_config()
    groups = getattr(config, "position_groups", None)
    vocab_size = getattr(config, "vocab_size", getattr(inner, "vocab_size", None))
    mask = getattr(config, "mask_token_id", None)
    positions = len(groups[0]) if groups else getattr(inner, "max_position_embeddings", None)
    fits = positions is None or (positions == CELLS if groups else positions >= CELLS)
    if vocab_size != VOCAB_SIZE or mask not in (None, MASK_ID) or not fits:
        raise ValueError(
            f"`{argument}` names {name!r}, which is no Sudoku model (vocabulary {vocab_size}, mask {mask}, positions "
            f"{positions}): pass one of {VOCAB_SIZE} ids, {MASK_ID} the mask, over {CELLS} positions, such as "
            "model_cards/rm-sudoku."
        )
