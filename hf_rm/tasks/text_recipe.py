# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What a text recipe prints and leaves behind: tables, accuracy against forwards, recall by history, trajectories."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table

from ..corruption.collator import pad_rows
from ..corruption.random import KeyedUniforms, row_keys
from ..evaluation.history_recall import recall_by_history, recall_table
from ..evaluation.statistics import mean_interval, shown_interval
from ..evaluation.text import decode_batch, decoding_config
from ..evaluation.text_records import TextEvaluation
from ..evaluation.text_report import plot_forwards, text_results_table
from ..generation_config_rm import ReflectiveGenerationConfig
from ..generation_rules_rm import REVEAL_RULES
from ..training.stages import CLOCK_FILE, read_clock, write_json
from ..visualize import Replay, write_html
from .post_training import MAIN, SYSTEMS, PostTraining, Trained
from .text import TextSample, decoded, prompt_ids

WRONG_SHARE = 0.15
REVEAL_SHARE = 0.75


def with_default_config(path: Path, arguments: Sequence[str] | None = None) -> list[str]:
    """The command line, with `--config path` in front where it names no config of its own."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    named = any(word == "--config" or word.startswith("--config=") for word in given)
    return given if named else ["--config", str(path), *given]


def report(run: PostTraining) -> None:
    """
    Train and evaluate everything, print the tables, and say where the rest lies.

    `records.json` is written after every part: what fails in a later one costs nothing of those before it.

    Raises:
        ImportError, ValueError: before anything is trained, for a library that the report would need, and for a
            decoding that cannot work.
    """
    _check(run)
    trained = run.systems()
    pages = _Pages(run.root / "records.json")
    for name, value in _results(run, trained, MAIN, pages).items():
        pages.keep(name, value)
    more: dict[str, Any] = {}
    for test in run.tests:
        if test != MAIN:
            more[test] = _results(run, trained, test, pages)
            pages.keep("more_tests", more)
    curves = _curves(run, trained)
    if curves:
        pages.keep("curves", {name: [one.summary() for one in curve] for name, curve in curves.items()})
    if not PartialState().is_main_process:
        return
    _revision_seen(run, [one for one in trained if SYSTEMS[one.name].trainer == "rm"], pages)
    if curves:
        pages.say(f"accuracy against forwards: {plot_forwards(curves, run.root / 'forwards.png')}")
    pages.say(f"records: {pages.path}")


class _Pages:
    """What the first process shows and writes down; the others do neither."""

    def __init__(self, path: Path) -> None:
        self.path, self.records, self.main = path, dict[str, Any](), PartialState().is_main_process
        self.console = Console(width=None if sys.stdout.isatty() else 230, quiet=not self.main)

    def keep(self, name: str, value: Any) -> None:
        """Write everything so far."""
        self.records[name] = value
        if self.main:
            write_json(self.path, self.records)

    def say(self, what: Any) -> None:
        """Print a table or a line."""
        self.console.print(what, soft_wrap=isinstance(what, str))


def _check(run: PostTraining) -> None:
    """Raise now for what would end the report after hours of training."""
    budgets, rules = run.arguments.curve_forwards, run.arguments.training_free
    if budgets and find_spec("matplotlib") is None:
        raise ImportError(
            f"`curve_forwards` is {budgets}, but its plot needs matplotlib: pip install 'hf-rm[recipes]', or leave it "
            "out."
        )
    if taken := {*run.tests} & {*run.arguments.decoded_otherwise()}:
        raise ValueError(f"`other_decodings` has {sorted(taken)}, which name tests: choose other names.")
    others = [settings for _, settings in run.arguments.decoded_otherwise().values()]
    length = run.arguments.completion_length
    for settings in (run.arguments.decoding("sft"), run.arguments.decoding("rm"), *others):
        ReflectiveGenerationConfig(**settings)
        if settings.get("max_new_tokens", length) != length:
            raise ValueError(
                f"a decoding has max_new_tokens={settings['max_new_tokens']}, but `completion_length` is {length}: "
                "leave the first out."
            )
    for rule in rules:
        budgeted(run, rule, 1)
    for name in run.arguments.systems:
        for rule in _curve_rules(run, name):
            for budget in budgets:
                ReflectiveGenerationConfig(**budgeted(run, rule, budget))


def _results(run: PostTraining, trained: Sequence[Trained], test: str, pages: _Pages) -> dict[str, Any]:
    """Evaluate on a test, with a table a seed, and over all seeds their means."""
    rows = {(one.name, one.seed): (one, test) for one in trained}
    evaluations = {key: run.evaluate(one, test=test) for key, (one, _) in rows.items()}
    for name, (system, settings) in run.arguments.decoded_otherwise().items():
        for one in trained:
            if one.name == system:
                folder = name if test == MAIN else f"{name}-{test}"
                rows[name, one.seed] = (one, folder)
                other = run.evaluate(one, settings, folder, test=test)
                evaluations[name, one.seed] = replace(other, name=f"{name}, seed {one.seed}")
    records: dict[str, Any] = {
        "systems": [_record(run, name, *rows[name, seed], one) for (name, seed), one in evaluations.items()]
    }
    seeds, task = run.arguments.seeds, run.tests[test].name
    spent = {(name, seed): run.cpu_minutes(one.name, seed) for (name, seed), (one, _) in rows.items()}
    for seed in seeds:
        shown = [evaluation for (_, its), evaluation in evaluations.items() if its == seed]
        minutes = {_MINUTES: [_shown_minutes(cpu) for (_, its), cpu in spent.items() if its == seed]}
        pages.say(text_results_table(shown, evaluations.get(("sft", seed)), f"{task}, seed {seed}", more=minutes))
    if len(seeds) > 1:
        found = records["means"] = means(evaluations)
        for name, row in found.items():
            known = [m for seed in seeds if (m := spent[name, seed]) is not None]
            row["cpu_minutes"] = float(np.mean(known)) if len(known) == len(seeds) else None
        title = f"{task}, means of {len(seeds)} seeds"
        pages.say(means_table(found, title))
        if any(row["by_group"] for row in found.values()):
            pages.say(group_means_table(found, f"{title} by group"))
    return records


def _revision_seen(run: PostTraining, revising: Sequence[Trained], pages: _Pages) -> None:
    """Re-mask recall by history, and pages of trajectories of the first seed's systems."""
    rows = recall_rows(run) if revising else []
    if rows:
        found = {one.label: recall(run, one, rows) for one in revising}
        pages.keep("recall", found)
        pages.say(recall_table(found.items()))
    for one in revising:
        if one.seed == run.arguments.seeds[0] and run.arguments.replay_samples:
            pages.say(f"trajectories of {one.label}: {write_replays(run, one)}")


def _record(run: PostTraining, name: str, one: Trained, folder: str, evaluation: TextEvaluation) -> dict[str, Any]:
    return {
        "system": name,
        "training_seed": one.seed,
        "decoding": evaluation.decoding,
        **evaluation.summary(),
        "training_seconds": run.training_seconds(one.name, one.seed),
        "evaluation_seconds": read_clock(run.evaluation_folder(one, folder) / CLOCK_FILE),
    }


_MINUTES = "training CPU min"


def _shown_minutes(minutes: float | None) -> str:
    return "-" if minutes is None else f"{minutes:.1f}"


# Over the seeds


def means(evaluations: dict[tuple[str, int], TextEvaluation], baseline: str = "sft") -> dict[str, dict[str, Any]]:
    """
    Each system's accuracy over all seeds, and its difference to the baseline, in all and by group.

    A problem's verdicts are first averaged over the seeds, and the interval is that of the problems' mean: one of the
    problems that might have been drawn, for these seeds. `spread` is the standard deviation over the seeds.

    Args:
        evaluations: By system and seed, all of the same problems.
        baseline: What differences are taken to, seed by seed.

    Returns:
        By system: `accuracy`, `less_baseline` (intervals as lists; None without a baseline), `spread`, `forwards`;
        `by_group`, the first three of each group; and what revision did to the samples of all seeds together:
        `to_right`, `to_wrong` and `precision`, None where it was not recorded.
    """
    names = list(dict.fromkeys(name for name, _ in evaluations))
    own = {name: [one for (other, _), one in evaluations.items() if other == name] for name in names}
    verdicts = {name: np.array([one.correct for one in own[name]], dtype=float) for name in names}
    groups = next(iter(evaluations.values())).by_group()
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        reference = None if name == baseline else verdicts.get(baseline)
        member = np.array([record.group for record in own[name][0].records])
        by_group = {group: _over_seeds(verdicts[name], reference, member == group) for group in groups}
        table[name] = {
            **_over_seeds(verdicts[name], reference),
            "forwards": float(np.mean([one.forwards.value for one in own[name]])),
            "by_group": by_group if len(groups) > 1 else {},
        }
        together = TextEvaluation(name, tuple(record for one in own[name] for record in one.records), {}, 0).revision
        for rate in ("to_right", "to_wrong", "precision"):
            table[name][rate] = None if together is None else list(getattr(together, rate))
    return table


def _over_seeds(verdicts: np.ndarray, reference: np.ndarray | None, which: Any = slice(None)) -> dict[str, Any]:
    """Of verdicts (seeds, problems), and those of the baseline, some of the problems."""
    chosen, less = verdicts[:, which], None
    if reference is not None and len(reference) == len(verdicts):
        less = list(mean_interval((chosen - reference[:, which]).mean(0)))
    spread = float(chosen.mean(1).std(ddof=1)) if len(chosen) > 1 else None
    return {"accuracy": list(mean_interval(chosen.mean(0))), "spread": spread, "less_baseline": less}


def means_table(found: dict[str, dict[str, Any]], title: str = "Means", baseline: str = "sft") -> Table:
    """[`means`] as a table; with `cpu_minutes` in the rows these too."""
    caption = f"95 % intervals over the problems in brackets; {_MINUTES} with all that a system stands on"
    table = Table(title=title, caption=caption)
    revision = {"to right %": "to_right", "to wrong %": "to_wrong", "precision %": "precision"}
    for heading in (
        "system",
        "accuracy %",
        "spread over seeds",
        f"less {baseline}, points",
        "forwards",
        *revision,
        _MINUTES,
    ):
        table.add_column(heading)
    for name, row in found.items():
        cells = [shown_interval(row["accuracy"]), _points(row["spread"]), _difference(row["less_baseline"])]
        rates = ["-" if row[rate] is None else shown_interval(row[rate]) for rate in revision.values()]
        table.add_row(name, *cells, f"{row['forwards']:.1f}", *rates, _shown_minutes(row.get("cpu_minutes")))
    return table


def group_means_table(found: dict[str, dict[str, Any]], title: str = "Means", baseline: str = "sft") -> Table:
    """Accuracy by group from [`means`] as a table; below it the difference to the baseline."""
    caption = f"accuracy in %, below it less {baseline} in points; 95 % intervals over the problems in brackets"
    table = Table(title=title, caption=caption)
    for heading in ("system", *next(iter(found.values()))["by_group"]):
        table.add_column(heading or "(none)")
    for name, row in found.items():
        groups = row["by_group"].values()
        table.add_row(name, *(f"{shown_interval(g['accuracy'])}\n{_difference(g['less_baseline'])}" for g in groups))
    return table


def _difference(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else shown_interval(interval, sign="+")


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


# Accuracy against forwards


def _curves(run: PostTraining, trained: Sequence[Trained]) -> dict[str, list[TextEvaluation]]:
    """The first seed's systems under each budget: SFT, RM, and training-free revision of the SFT model."""
    first = [one for one in trained if one.seed == run.arguments.seeds[0]]
    curves: dict[str, list[TextEvaluation]] = {}
    for one in first:
        for rule in _curve_rules(run, one.name):
            name = one.name if rule == SYSTEMS[one.name].trainer else f"{one.name}, {rule}"
            curves[name] = [
                run.evaluate(one, budgeted(run, rule, budget), f"{rule}-{budget}", revision=False)
                for budget in run.arguments.curve_forwards
            ]
    return {name: curve for name, curve in curves.items() if curve}


def _curve_rules(run: PostTraining, system: str) -> tuple[str, ...]:
    """How a system is decoded for the curve, as [`budgeted`] calls it."""
    if system not in run.arguments.curve_systems:
        return ()
    return {"rm": ("rm",), "sft": ("sft", *run.arguments.training_free), None: ()}[SYSTEMS[system].trainer]


def budgeted(run: PostTraining, rule: str, forwards: int) -> dict[str, Any]:
    """
    A decoding of at most so many forward passes; one that revises has all masks revealed after three quarters of them.

    Rules with a schedule get a shorter one; a threshold, which has none, has to reveal more a step, unless the budget
    is no smaller than the bound it has anyway.

    Args:
        run: Its arguments hold the decodings.
        rule: ``"sft"``, ``"rm"``, a revision rule that needs no training (over SFT's decoding), or ``"remdm"``.
        forwards: The budget, at least 1.

    Raises:
        ValueError: For an unknown rule.
    """
    thresholds = {"low_prob": 0.3, "t2t_remask": 0.9, "logit_diff": 0.3}
    if rule == "remdm":
        return {"preset": "remdm-loop", "steps": forwards}
    if rule not in ("sft", "rm", *thresholds):
        raise ValueError(f"`training_free` has {rule!r}: pass any of {', '.join(thresholds)}, remdm.")
    settings = run.arguments.decoding("rm" if rule == "rm" else "sft")
    scheduled = REVEAL_RULES[ReflectiveGenerationConfig(**settings).reveal].follows_schedule
    reveals = forwards if rule == "sft" else max(1, round(REVEAL_SHARE * forwards))
    at_least = -(-run.arguments.completion_length // reveals)
    hurried = forwards < (settings.get("max_steps") or math.inf)
    pace = {"steps": reveals} if scheduled else {"min_reveals_per_step": at_least} if hurried else {}
    limits = {"max_remasks_per_position": 1, "max_remask_ratio": 0.25}
    free = {"revise": rule, "revise_threshold": thresholds[rule], **limits} if rule in thresholds else {}
    return {**settings, **pace, **free, "max_steps": forwards}


# Revision seen


def recall_rows(run: PostTraining) -> list[dict[str, Any]]:
    """Reference completions to plant wrong tokens in; none, and a line that says why, where none are to be had."""
    count = run.arguments.recall_samples
    samples = [sample for sample in run.task.test() if sample.completion][:count]
    if count and not samples:
        print("no probe of recall: no held-out sample has a solution")
    try:
        return run.encode(samples, "samples of the probe of recall") if samples else []
    except ValueError as error:
        print(f"no probe of recall: {error}")
        return []


def recall(run: PostTraining, trained: Trained, rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """
    Share of wrong tokens in reference completions that one step re-masks, by the past they are given.

    Wrong at 15 % of a completion's tokens (its end tokens aside), drawn from the tokens of the completions as often as
    they occur there.
    """
    args = run.arguments
    targets, real, editable = pad_rows(rows, run.tokenizer.pad_token_id or 0)
    editable &= targets != run.tokenizer.eos_token_id
    uniforms = KeyedUniforms(row_keys(args.eval_seed, 0, [row["idx"] for row in rows]))
    wrong = editable & (uniforms.draw(targets.shape[1]) < WRONG_SHARE)
    drawn = _other_tokens(targets, targets[editable], uniforms.draw(targets.shape[1], 2))
    state = np.where(wrong, drawn[..., 0], targets)
    model: Any = trained.load()
    ids, right, attempt = (torch.from_numpy(value) for value in (state, targets, drawn[..., 1]))
    return recall_by_history(
        model,
        ids,
        right,
        attempt,
        model.config.mask_token_id,
        attention_mask=torch.from_numpy(real.astype(np.int64)),
        editable_mask=torch.from_numpy(editable),
        batch_size=args.eval_batch_size,
    )


def _other_tokens(targets: np.ndarray, pool: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """(B, N, A) tokens of `pool` other than the target, as often as they occur there."""
    ids, counts = np.unique(pool, return_counts=True)
    cumulative = counts.cumsum() / counts.sum()
    own = np.minimum(np.searchsorted(ids, targets), len(ids) - 1)
    present = ids[own] == targets
    low = np.where(present, cumulative[own] - counts[own] / counts.sum(), 1.0)[..., None]
    width = np.where(present, counts[own] / counts.sum(), 0.0)[..., None]
    # The target's own share of [0, 1) is cut out, and the number stepped over it.
    scaled = uniforms * (1 - width)
    scaled = np.where(scaled >= low, scaled + width, scaled)
    return ids[np.minimum(np.searchsorted(cumulative, scaled, side="right"), len(ids) - 1)]


def write_replays(run: PostTraining, trained: Trained) -> Path:
    """An HTML page with trajectories of problems drawn at random by the evaluation's seed."""
    args = run.arguments
    samples = run.held_out()
    chosen = np.random.default_rng(args.eval_seed).permutation(len(samples))[: args.replay_samples]
    model = trained.load()
    config = decoding_config(model, args.decoding("rm"), args.completion_length)
    replays = [_replay(run, model, samples[int(index)], config) for index in chosen]
    return write_html(replays, run.root / f"seed{trained.seed}" / f"trajectories-{trained.name}.html")


def _replay(run: PostTraining, model: Any, sample: TextSample, config: Any) -> Replay:
    canvas = decode_batch(
        model, run.tokenizer, [prompt_ids(sample, run.tokenizer)], [sample.key], config, run.arguments.eval_seed, True
    )[0]
    assert canvas.states is not None and canvas.actions is not None
    target = None
    if sample.completion:
        ids = [*run.tokenizer(sample.completion, add_special_tokens=False)["input_ids"]]
        end = [run.tokenizer.eos_token_id] * (len(canvas.ids) - len(ids))
        target = [*ids, *end] if len(ids) <= len(canvas.ids) else None
    right = run.task.grade(sample, decoded(canvas.ids, run.tokenizer))
    return Replay.from_trajectory(
        canvas.states,
        canvas.actions,
        mask_token_id=canvas.mask_token_id,
        decode=run.tokenizer,
        target=target,
        title=f"{sample.prompt.strip()} ({'right' if right else 'wrong'})",
    )
