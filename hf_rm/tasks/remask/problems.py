# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What the Remask recipes train on and are measured by: Sudoku boards, questions with an answer, programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import AutoConfig, AutoTokenizer, set_seed

from ...adapters_rm import ADAPTER_FOLDER, _load_base, find_adapter
from ...configuration_rm import RMConfig
from ...corruption import FixedProposal, FrozenTopKProposal, Proposal, UniformProposal, build_topk_cache
from ...corruption.collator import pad_rows
from ...corruption.random import KeyedUniforms, row_keys
from ...evaluation.confidence import auroc_interval, token_confidence
from ...evaluation.statistics import Interval
from ...evaluation.text import evaluate_text
from ...families_rm import _WHERE, _read_config, family_of
from ...generation_config_rm import ReflectiveGenerationConfig
from ...generation_rm import ReflectiveGenerationMixin
from ...modeling_rm import RMForMaskedDiffusion
from ...remedi_rm import RemeDiConfig, RemeDiForMaskedDiffusion, policy_decoding
from ...training.rewards import code_reward, format_reward, math_reward, sudoku_reward
from ..code.tasks import CodeTask
from ..math.tasks import MATH_TASKS, TEMPLATE, build_math_task
from ..sudoku import (
    MASK_ID,
    VOCAB_SIZE,
    BoardArray,
    conflict_cells,
    corrupt_boards,
    evaluation_set,
    find_ceiling,
    format_board,
    generate_boards,
    is_valid,
)
from ..sudoku.model import build_sudoku_model, build_sudoku_tokenizer, sudoku_config
from ..text import encode_samples

Kind = Literal["sft", "remedi", "rm"]
WRAPPERS = {"sft": RMForMaskedDiffusion, "rm": RMForMaskedDiffusion, "remedi": RemeDiForMaskedDiffusion}
TASKS = ("sudoku", "mbpp", *MATH_TASKS)
WRONG_SHARE = 0.15
_PLANTED_ROWS = 500


@dataclass
class ProblemArguments:
    """What is solved, how it is decoded, and what is rewarded: the same in all of the Remask recipes."""

    task: str = field(default="sudoku", metadata={"help": f"One of {', '.join(TASKS)}."})
    base: str | None = field(
        default=None, metadata={"help": "A name or folder to start from; Sudoku has a fresh model without one."}
    )
    backbone_kwargs: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "For loading `base`: dtype, attn_implementation."}
    )
    canvas: Literal["masks", "draft"] = field(
        default="masks",
        metadata={"help": "Sudoku: fill in hidden cells, or (RM alone) revise boards with 4 to 20 wrong ones."},
    )
    hidden_cells: list[int] = field(
        default_factory=lambda: [20, 40], metadata={"help": "Fewest and most cells that are hidden."}
    )
    num_layers: int = field(default=4, metadata={"help": "Layers of the fresh Sudoku model."})
    train_data: str | None = field(default=None, metadata={"help": "As for recipes/math.py or recipes/mbpp.py."})
    test_data: str | None = field(default=None, metadata={"help": "The same."})
    program_seconds: float = field(default=5.0, metadata={"help": "MBPP: how long a program may run."})
    template: str = field(default=TEMPLATE, metadata={"help": "Of the prompt, with {question}."})
    completion_length: int = field(default=256, metadata={"help": "Tokens of the canvas behind a question."})
    longest_row: int | None = field(
        default=None, metadata={"help": "Tokens of question and canvas; longer: left out."}
    )
    decoding_sft: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Settings of generate_reflective after vanilla fine-tuning."}
    )
    decoding_remedi: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Those of RemeDi, in rollouts and in evaluation."}
    )
    decoding_rm: dict[str, Any] | str | None = field(default_factory=dict, metadata={"help": "Those of RM, in both."})
    rewards: list[str] = field(
        default_factory=lambda: ["valid", "conflicts"],
        metadata={
            "help": "Sudoku: 'valid', 'exact', 'conflicts'. Questions: 'answer', 'format'. MBPP: 'passes', 'format'."
        },
    )
    train_rows: int = field(default=20_000, metadata={"help": "Rows made for training."})
    eval_rows: int = field(default=500, metadata={"help": "Held-out rows."})
    eval_batch_size: int = field(default=50, metadata={"help": "Rows decoded at once."})
    eval_seed: int = field(default=20261122, metadata={"help": "Seed of the held-out rows; training never sees it."})
    proposal_top_k: int = field(default=50, metadata={"help": "Wrong tokens a position in the frozen proposal."})
    probe: Literal["clean", "masked"] = field(
        default="masked", metadata={"help": "What the frozen checkpoint reads for it: the row, or one with masks."}
    )
    ceiling_dir: str = field(
        default="benchmarks/results", metadata={"help": "Where sudoku_ceiling.py keeps its results."}
    )

    def __post_init__(self) -> None:
        for item in fields(self):  # also a recipe's own
            if item.default_factory is dict:
                as_dict(getattr(self, item.name), item.name)
        if self.task not in TASKS:
            raise ValueError(f"`task` is {self.task!r}: pass one of {', '.join(TASKS)}.")
        known = _REWARDS.get(self.task, ("answer", "format"))
        unknown = [name for name in self.rewards if name not in known]
        if unknown or not self.rewards:
            raise ValueError(f"`rewards` is {self.rewards}, but task {self.task!r} has {', '.join(known)}.")
        if self.canvas not in ("masks", "draft"):
            raise ValueError(f"`canvas` is {self.canvas!r}: pass 'masks' or 'draft'.")
        if len(self.hidden_cells) != 2 or not 1 <= self.hidden_cells[0] <= self.hidden_cells[1] <= 81:
            raise ValueError(f"`hidden_cells` is {self.hidden_cells}: pass the fewest and the most, from 1 to 81.")
        for name in ("train_rows", "eval_rows", "eval_batch_size", "completion_length", "proposal_top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: pass a positive number.")

    def decoding(self, kind: Kind) -> dict[str, Any]:
        """The settings for models of this kind."""
        return as_dict(getattr(self, f"decoding_{kind}"))


_REWARDS = {"sudoku": ("valid", "exact", "conflicts"), "mbpp": ("passes", "format")}


def as_dict(given: dict[str, Any] | str | None, name: str = "setting") -> dict[str, Any]:
    """
    A setting that a YAML file gives as a dict and a command line as JSON; None is an empty one.

    A field for it is annotated `dict[str, Any] | str | None`: without the None, HfArgumentParser makes `dict` read the
    command line's text.

    Args:
        given: the setting.
        name (`str`): what it is called, for the error.

    Raises:
        ValueError: for what is neither a dict nor a JSON object.

    Example:
        >>> as_dict('{"steps": 12}'), as_dict({"steps": 12}), as_dict(None)
        ({'steps': 12}, {'steps': 12}, {})
    """
    try:
        values = json.loads(given) if isinstance(given, str) else given
    except json.JSONDecodeError as error:
        raise ValueError(f"`{name}` is {given!r}, no JSON ({error}): {_JSON_OBJECT}") from error
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"`{name}` is {given!r}, no JSON object: {_JSON_OBJECT}")
    return dict(values or {})


_JSON_OBJECT = """pass one such as '{"steps": 12}', in quotes."""


@dataclass(frozen=True)
class Outcome:
    """
    What a model makes of the held-out rows.

    Attributes:
        values: By name, a number a row; the first one, a verdict, is what systems are compared by.
        answers: The final tokens of what could change, row by row.
    """

    values: dict[str, list[float]]
    answers: list[list[int]]

    @property
    def main(self) -> npt.NDArray[np.float64]:
        """(n,) the first of the values."""
        return np.array(next(iter(self.values.values())), dtype=float)


class Problems(Protocol):
    """What a recipe's stages need of a task."""

    name: str
    tokenizer: Any
    verdicts: tuple[str, ...]  # those of an outcome's values that are true or false

    def model(self, kind: Kind, start: str | None, wrapper: dict[str, Any]) -> Any:
        """A model to begin the supervised stage with."""

    def outline(self, kind: Kind, wrapper: dict[str, Any]) -> Any:
        """What a decoding can be checked with before that model is there; also the wrapper's own arguments."""

    def load(self, kind: Kind, folder: Path, trainable: bool = False) -> Any:
        """A model that a stage saved; an adapted one as a PeftModel if it is to be trained further."""

    def rows(self, seed: int) -> list[dict[str, Any]]:
        """Rows of the supervised stages."""

    def proposal(self, name: str, start: str | None, folder: Path, seed: int) -> Proposal:
        """Where their wrong tokens come from."""

    def prompts(self, seed: int, count: int | None = None) -> list[dict[str, Any]]:
        """Rows of the reinforcement: all, or so many."""

    def canvas(self, seed: int) -> dict[str, Any]:
        """A row to decode, as reinforcement's; an empty one for a canvas of masks behind a text."""

    def reward_functions(self) -> list[Any]:
        """What it is after."""

    def evaluate(self, model: Any, kind: Kind, folder: Path, label: str) -> Outcome:
        """Decode the held-out rows without chance."""

    def confidence(self, model: Any, outcome: Outcome) -> dict[str, Interval]:
        """Its confidence against correctness, for errors that were planted and for the model's own."""

    def ceiling(self) -> npt.NDArray[np.float64] | None:
        """(n,) what can be reached at most in each held-out row, where that is known."""


class Outline(ReflectiveGenerationMixin):
    """
    The settings of a model without its weights: enough to check how it is to be decoded.

    Args:
        config (`RMConfig`): its configuration.
        generation_config ([`ReflectiveGenerationConfig`], *optional*): how it decodes by itself, where that is not as
            a fresh model of this configuration does.
    """

    device = torch.device("cpu")

    def __init__(self, config: Any, generation_config: ReflectiveGenerationConfig | None = None) -> None:
        self.config, self.has_unmasking_policy = config, isinstance(config, RemeDiConfig)
        own = policy_decoding(config) if isinstance(config, RemeDiConfig) else ReflectiveGenerationConfig()
        self.generation_config = own if generation_config is None else generation_config

    @classmethod
    def saved(cls, folder: Path | str) -> Outline:
        """Of a model that is there; an OSError where none is."""
        config = AutoConfig.from_pretrained(folder)
        try:
            return cls(config, ReflectiveGenerationConfig.from_pretrained(folder))
        except OSError:
            return cls(config)


def build_problems(arguments: ProblemArguments) -> Problems:
    """Those that the arguments name."""
    kinds: dict[str, Any] = {"sudoku": SudokuProblems, "mbpp": CodeProblems}
    return kinds.get(arguments.task, MathProblems)(arguments)


def _loaded(kind: Kind, folder: Path, trainable: bool, **loading: Any) -> Any:
    """A saved wrapper; with an adapter `loading` is for its base, and what is trained on is a PeftModel."""
    if find_adapter(folder) is None:
        return WRAPPERS[kind].from_pretrained(folder)
    if not trainable:
        return WRAPPERS[kind].from_pretrained(folder, **loading)
    from peft import PeftModel

    config = WRAPPERS[kind].config_class.from_pretrained(folder)
    base = _load_base(WRAPPERS[kind], folder, config, False, {}, loading)
    model = PeftModel.from_pretrained(base, folder / ADAPTER_FOLDER, is_trainable=True)
    # PEFT takes the config at that name for one of the wrapper's class, and the base's is another.
    model.peft_config["default"].base_model_name_or_path = base.config.name_or_path
    return model


def share_of(count: int) -> range:
    """The rows of this process."""
    state = PartialState()
    return range(state.process_index, count, state.num_processes)


def gathered(found: dict[int, Any]) -> list[Any]:
    """What all processes found, by row."""
    pairs = list(found.items())
    both = gather_object(pairs) if PartialState().num_processes > 1 else pairs
    return [value for _, value in sorted(both, key=lambda pair: pair[0])]


class SudokuProblems:
    """Boards: with hidden cells to fill in, or with wrong ones to revise."""

    name: str = "sudoku"
    verdicts: tuple[str, ...] = ("exact", "valid")

    def __init__(self, arguments: ProblemArguments) -> None:
        self.arguments = arguments
        self.tokenizer: Any = build_sudoku_tokenizer()

    def model(self, kind: Kind, start: str | None, wrapper: dict[str, Any]) -> Any:
        """A fresh one, or the whole model of `base`."""
        args = self.arguments
        if start is not None:
            raise ValueError(f"a {kind} stage comes after another one: on Sudoku all begin afresh, leave `after` out.")
        if args.base is not None:
            return self.load(kind, Path(args.base))
        if args.canvas == "draft" and kind != "rm":
            raise ValueError("`canvas` is 'draft', but only RM revises drafts: pass canvas='masks' or train RM alone.")
        if kind != "remedi":
            if wrapper:
                raise ValueError(f"`wrapper` is {wrapper}: on Sudoku it is for RemeDi alone, leave it out.")
            model = build_sudoku_model("no-hr" if kind == "sft" else "hr-decay-her", num_layers=args.num_layers)
            editable = "all" if args.canvas == "draft" else "auto"
            model.generation_config = model.generation_config.updated(editable=editable, patience=1, max_steps=None)
            return model
        own = sudoku_config(num_layers=args.num_layers)
        names = ("text_config", "mask_token_id", "position_groups", "attention_groups", "backbone_positions")
        return RemeDiForMaskedDiffusion(RemeDiConfig(**{name: getattr(own, name) for name in names}, **wrapper))

    def outline(self, kind: Kind, wrapper: dict[str, Any]) -> Any:
        """A fresh model is made at once."""
        return self.model(kind, None, wrapper) if self.arguments.base is None else Outline.saved(self.arguments.base)

    def load(self, kind: Kind, folder: Path, trainable: bool = False) -> Any:
        """As it was saved."""
        return _loaded(kind, folder, trainable)

    def rows(self, seed: int) -> list[dict[str, Any]]:
        """Solved boards, every cell of which may change."""
        boards = generate_boards(self.arguments.train_rows, seed, split="train")
        return [{"input_ids": board.tolist(), "idx": i} for i, board in enumerate(boards)]

    def proposal(self, name: str, start: str | None, folder: Path, seed: int) -> Proposal:
        """Any of the eight other digits."""
        return FixedProposal([0] + [1] * (VOCAB_SIZE - 1))

    def prompts(self, seed: int, count: int | None = None) -> list[dict[str, Any]]:
        """Boards to be completed or revised, with their solutions."""
        boards = generate_boards(self.arguments.train_rows if count is None else count, seed, split="train")
        given, editable = self._canvases(boards, np.random.default_rng([seed, 0]))
        return [
            {
                "prompt": format_board(ids),
                "input_ids": ids.tolist(),
                "editable_mask": mask.tolist(),
                "solution": format_board(board),
            }
            for ids, mask, board in zip(given, editable, boards, strict=True)
        ]

    def canvas(self, seed: int) -> dict[str, Any]:
        """The first of the prompts of one."""
        return self.prompts(seed, 1)[0]

    def _canvases(self, boards: BoardArray, rng: np.random.Generator) -> tuple[BoardArray, npt.NDArray[np.bool_]]:
        if self.arguments.canvas == "draft":
            return corrupt_boards(boards, rng), np.ones(boards.shape, dtype=bool)
        least, most = self.arguments.hidden_cells
        count = rng.integers(least, most + 1, size=len(boards))
        editable = rng.random(boards.shape).argsort(1).argsort(1) < count[:, None]
        return np.where(editable, MASK_ID, boards).astype(np.uint8), editable

    @cached_property
    def held_out(self) -> tuple[BoardArray, BoardArray, npt.NDArray[np.bool_]]:
        """Canvases, solutions and what may change; drafts are those of recipes/sudoku.py."""
        args = self.arguments
        wrong, boards = evaluation_set("generated", args.eval_rows, args.eval_seed)
        if args.canvas == "draft":
            return wrong, boards, np.ones(boards.shape, dtype=bool)
        given, editable = self._canvases(boards, np.random.default_rng([args.eval_seed, 1]))
        return given, boards, editable

    def reward_functions(self) -> list[Any]:
        """Of whole boards: what is given, and in it what was written."""
        return [_of_whole_board(sudoku_reward(kind)) for kind in self.arguments.rewards]  # type: ignore[arg-type]

    def evaluate(self, model: Any, kind: Kind, folder: Path, label: str) -> Outcome:
        """Exact and valid boards, cells in conflict, forward passes and re-masks."""
        given, boards, editable = self.held_out
        mine, size = share_of(len(given)), self.arguments.eval_batch_size
        found: dict[int, Any] = {}
        model.eval()
        for begin in range(0, len(mine), size):
            rows = list(mine[begin : begin + size])
            ids = torch.from_numpy(given[rows].astype(np.int64)).to(model.device)
            mask = torch.from_numpy(editable[rows]).to(model.device)
            output = model.generate_reflective(ids, editable_mask=mask, **self.arguments.decoding(kind))
            final = output.sequences.cpu().numpy().astype(np.uint8)
            exact, valid, clashes = (final == boards[rows]).all(1), is_valid(final), conflict_cells(final)
            for place, row in enumerate(rows):
                counts = int(output.num_forwards[place]), int(output.num_remasks[place])
                numbers = bool(exact[place]), bool(valid[place]), int(clashes[place]), *counts
                found[row] = (*map(float, numbers), final[place].tolist())
        *columns, answers = zip(*gathered(found), strict=True)
        names = ("exact", "valid", "conflict cells", "forwards", "re-masks")
        return Outcome({name: list(column) for name, column in zip(names, columns, strict=True)}, list(answers))

    def confidence(self, model: Any, outcome: Outcome) -> dict[str, Interval]:
        """On boards with 4 to 20 wrong digits, and on the model's own final boards."""
        count = min(self.arguments.eval_rows, _PLANTED_ROWS)
        wrong, target = evaluation_set("generated", count, self.arguments.eval_seed)
        _, boards, editable = self.held_out
        own = np.array(outcome.answers)[:count]
        # A mask that was left is no token that one could trust.
        states = {
            "planted": (wrong, target, np.ones(target.shape, dtype=bool)),
            "own": (own, boards[:count], editable[:count] & (own != MASK_ID)),
        }
        size = self.arguments.eval_batch_size
        found = {}
        for name, (state, right, counted) in states.items():
            ids, mask = torch.from_numpy(state.astype(np.int64)), torch.from_numpy(np.ones(state.shape, dtype=bool))
            scores = token_confidence(model, ids, editable_mask=mask, batch_size=size).numpy()
            found[name] = auroc_interval(scores[counted], (state == right)[counted], np.nonzero(counted)[0])
        return found

    def ceiling(self) -> npt.NDArray[np.float64] | None:
        """Of drafts, where it was computed for these very boards or a larger set that begins with them."""
        args = self.arguments
        if args.canvas != "draft":
            return None
        table = find_ceiling(args.ceiling_dir, "generated", args.eval_rows, args.eval_seed)
        return None if table is None else table.credit[: args.eval_rows]


def _of_whole_board(reward: Any) -> Any:
    """A reward of the answer put into the board that it completes."""

    @wraps(reward)  # with what it says of its columns
    def whole(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
        boards = []
        for ids, mask, written in zip(columns["input_ids"], columns["editable_mask"], completion_ids, strict=True):
            left = iter(written)
            boards.append(format_board([next(left) if m else i for i, m in zip(ids, mask, strict=True)]))
        return reward(prompts=prompts, completions=boards, **columns)

    return whole


class TextProblems:
    """Prompts, behind which a canvas of masks becomes an answer."""

    verdicts: tuple[str, ...] = ("right",)
    made: dict[str, Callable[[], Any]]  # rewards by name, made when they are asked for

    def __init__(self, arguments: ProblemArguments, task: Any) -> None:
        if arguments.base is None:
            raise ValueError(f"`base` is None: task {arguments.task!r} starts from a trained model, name one.")
        self.arguments, self.task = arguments, task
        self.name: str = task.name
        self.tokenizer: Any = AutoTokenizer.from_pretrained(arguments.base)

    def model(self, kind: Kind, start: str | None, wrapper: dict[str, Any]) -> Any:
        """The base, or a plain checkpoint, wrapped for the policy; a wrapper as it is."""
        set_seed(0)  # nothing but the stream is drawn in wrapping
        name = self.arguments.base if start is None else start
        settings = {"history": False} if kind == "sft" else wrapper
        loading = as_dict(self.arguments.backbone_kwargs)
        return WRAPPERS[kind].from_backbone(name, backbone_kwargs=loading, **settings)

    def outline(self, kind: Kind, wrapper: dict[str, Any]) -> Any:
        """The base's configuration in the wrapper's, with any token for the mask."""
        where = {key: value for key, value in as_dict(self.arguments.backbone_kwargs).items() if key in _WHERE}
        base = _read_config(str(self.arguments.base), where)
        if isinstance(base, RMConfig):
            return Outline(base)
        family = family_of(base)
        settings: dict[str, Any] = {"history": False} if kind == "sft" else dict(wrapper)
        settings.setdefault("attention_block_length", None if family is None else family.attention_block_length)
        return Outline(WRAPPERS[kind].config_class(text_config=base, mask_token_id=0, **settings))

    def load(self, kind: Kind, folder: Path, trainable: bool = False) -> Any:
        """As it was saved: the wrapper, an adapter on the base, or after vanilla fine-tuning the plain backbone."""
        if kind == "sft" and find_adapter(folder) is None:
            return self.model(kind, str(folder), {})
        return _loaded(kind, folder, trainable, **as_dict(self.arguments.backbone_kwargs))

    @cached_property
    def _train(self) -> list[Any]:
        return self.task.train()[: self.arguments.train_rows]

    @cached_property
    def _test(self) -> list[Any]:
        return self.task.test()[: self.arguments.eval_rows]

    def rows(self, seed: int) -> list[dict[str, Any]]:
        """Questions with worked answers, filled up with end tokens; what is too long is counted, never cut."""
        args = self.arguments
        longest = args.longest_row or self.tokenizer.model_max_length
        encoded = encode_samples(self._train, self.tokenizer, longest, args.completion_length)
        if encoded.too_long and PartialState().is_main_process:
            print(f"{len(encoded.too_long)} of {len(self._train)} training samples are too long and left out")
        return encoded.rows

    def proposal(self, name: str, start: str | None, folder: Path, seed: int) -> Proposal:
        """`"top-k"` of the frozen start, or `"uniform"`."""
        config = self.model("sft", start, {}).config
        if name == "uniform":
            excluded = [config.mask_token_id, *(config.suppressed_token_ids or ())]
            return UniformProposal(config.vocab_size, excluded=excluded)
        args = self.arguments
        frozen = self.model("sft", start, {}).to(PartialState().device).eval()
        cache = build_topk_cache(
            frozen,
            self.rows(seed),
            folder / "top-k",
            k=args.proposal_top_k,
            probe=args.probe,
            seed=seed,
            tokenizer=self.tokenizer,
            batch_size=args.eval_batch_size,
        )
        return FrozenTopKProposal(cache)

    def prompts(self, seed: int, count: int | None = None) -> list[dict[str, Any]]:
        """The training samples' prompts, with what their rewards read."""
        return [{"prompt": sample.prompt, **self.columns(sample)} for sample in self._train[:count]]

    def columns(self, sample: Any) -> dict[str, Any]:
        """What rewards read of a sample."""
        raise NotImplementedError

    def canvas(self, seed: int) -> dict[str, Any]:
        """Masks behind a question."""
        return {}

    def reward_functions(self) -> list[Any]:
        """Those that the arguments name."""
        return [self.made[name]() for name in self.arguments.rewards]

    def evaluate(self, model: Any, kind: Kind, folder: Path, label: str) -> Outcome:
        """Right answers, forward passes and re-masks."""
        args, mine = self.arguments, share_of(len(self._test))
        state = PartialState()
        found: dict[int, Any] = {}
        if len(mine):
            done = evaluate_text(
                model,
                self.tokenizer,
                [self._test[row] for row in mine],
                self.task.grade,
                args.decoding(kind),
                completion_length=args.completion_length,
                batch_size=args.eval_batch_size,
                seed=args.eval_seed,
                folder=folder / f"part-{state.process_index}-of-{state.num_processes}",
                name=label,
            )
            for row, record in zip(mine, done.records, strict=True):
                numbers = float(record.correct), float(record.forwards), float(record.remasks)
                found[row] = (*numbers, list(record.ids))
        *columns, answers = zip(*gathered(found), strict=True)
        names = ("right", "forwards", "re-masks")
        return Outcome({name: list(column) for name, column in zip(names, columns, strict=True)}, list(answers))

    def confidence(self, model: Any, outcome: Outcome) -> dict[str, Interval]:
        """
        On reference answers with 15 % of their tokens replaced, by tokens as frequent as in the answers, and on the
        model's own answers, where a token is right if the reference answer has it in this place.
        """
        args, samples = self.arguments, self._test[:_PLANTED_ROWS]
        fitting = [i for i, sample in enumerate(samples) if sample.completion and outcome.answers[i]]
        longest = args.longest_row or self.tokenizer.model_max_length
        chosen = [samples[i] for i in fitting]
        encoded = encode_samples(chosen, self.tokenizer, longest, args.completion_length) if chosen else None
        if encoded is None:
            return {}
        kept = [i for i in fitting if samples[i].key not in set(encoded.too_long)]
        target, real, editable = pad_rows(encoded.rows, self.tokenizer.pad_token_id or 0)
        own = target.copy()
        own[editable] = np.concatenate([np.array(outcome.answers[i]) for i in kept])
        end, mask_token_id = self.tokenizer.eos_token_id, model.config.mask_token_id
        wrong = planted_errors(
            target, editable & (target != end), args.eval_seed, [row["idx"] for row in encoded.rows]
        )
        states = {
            "planted": (wrong, editable & (target != end)),
            # Where both have ended there is nothing to tell apart.
            "own": (own, editable & (own != mask_token_id) & ((own != end) | (target != end))),
        }
        found = {}
        for name, (state, counted) in states.items():
            ids, seen, mask = (torch.from_numpy(value) for value in (state, real.astype(np.int64), editable))
            scores = token_confidence(model, ids, seen, mask, args.eval_batch_size).numpy()
            found[name] = auroc_interval(scores[counted], (state == target)[counted], np.nonzero(counted)[0])
        return found

    def ceiling(self) -> None:
        """Not known."""


class MathProblems(TextProblems):
    """Questions with a final answer: the made ones, or a data set's."""

    def __init__(self, arguments: ProblemArguments) -> None:
        args = arguments
        counts = args.train_rows, args.eval_rows
        super().__init__(args, build_math_task(args.task, args.train_data, args.test_data, args.template, *counts))
        boxed = args.task == "math"
        self.made = {
            "answer": lambda: math_reward(method="math-verify" if boxed else "numeric"),
            "format": lambda: format_reward(r"\\boxed\{.+\}" if boxed else r"^#### -?[\d.,]+$", weight=0.1),
        }

    def columns(self, sample: Any) -> dict[str, Any]:
        """The right answer."""
        return {"answer": sample.answer}


class CodeProblems(TextProblems):
    """Programs that have to pass their tests, in the sandbox."""

    def __init__(self, arguments: ProblemArguments) -> None:
        args = arguments
        super().__init__(args, CodeTask("mbpp", args.train_data, args.test_data, args.program_seconds))
        self.made = {
            "passes": lambda: code_reward(timeout=args.program_seconds),
            "format": lambda: format_reward(r"```python\n[\s\S]+?\n```", weight=0.1),
        }

    def columns(self, sample: Any) -> dict[str, Any]:
        """Its tests, and the names that they take from the program."""
        problem = self.task.problem(sample)
        return {"tests": list(problem.tests), "entry_points": list(problem.entry_points), "prefix": problem.prefix}


def planted_errors(
    target: npt.NDArray[np.int64], editable: npt.NDArray[np.bool_], seed: int, keys: Sequence[Any]
) -> npt.NDArray[np.int64]:
    """
    (B, N) `target` with 15 % of the editable tokens replaced by others, drawn as often as they occur there.

    Example:
        >>> target = np.arange(200).reshape(2, 100)
        >>> wrong = planted_errors(target, target >= 0, 0, ["a", "b"])
        >>> 10 < int((wrong != target).sum()) < 50
        True
    """
    uniforms = KeyedUniforms(row_keys(seed, 0, keys))
    chosen = editable & (uniforms.draw(target.shape[1]) < WRONG_SHARE)
    pool = np.sort(target[editable])
    drawn = pool[(uniforms.draw(target.shape[1], 4) * len(pool)).astype(np.int64)]
    # The first of four draws that is another token; where none is, nothing changes.
    other = drawn != target[..., None]
    first = np.take_along_axis(drawn, other.argmax(-1)[..., None], axis=-1)[..., 0]
    return np.where(chosen & other.any(-1), first, target)
