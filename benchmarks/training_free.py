"""
Training-free revision on real strings: a pretrained masked language model repairs corrupted reaction SMILES.

    python benchmarks/training_free.py                                  # minutes on one core
    python benchmarks/training_free.py --development 20 --held_out 40   # to see it run
    python benchmarks/training_free.py --model FOLDER                   # another copy of the model, with its vocab.txt

The model is rxnmapper's ALBERT (0.74 M parameters, MIT), the strings are real reactions (benchmarks/data/rxnmapper).
In each string 5 to 15 % of the tokens become other tokens, drawn by how often they occur. Every token may be revised;
the rules have the settings of their presets, but the string is one block. A rule's threshold, and which rule is the
best, are chosen by token accuracy on the first strings; the table is about the others. "as it is" leaves the draft
alone.

LogitDiff looks for probabilities that drop from one step to the next. A draft without masks reads the same in every
step until something is revised, so by itself the rule never starts.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from _common import Row, add_result, print_table
from torch import Tensor

from hf_rm import RMForMaskedDiffusion
from hf_rm.evaluation import RevisionMetrics, paired_difference_interval, revision_metrics, shown_interval

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests" / "data" / "rxnmapper"
STRINGS = Path(__file__).parent / "data" / "rxnmapper" / "reactions.txt"
# An atom in brackets, an element of two letters, the reaction's arrow, a ring number of two digits, or one character.
TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|>>|%\d\d|.")
AS_IT_IS = "as it is"

RULES: dict[str, tuple[str, tuple[float, ...]]] = {
    "low_prob": ("t2m-lowprob", (0.0003, 0.001, 0.003, 0.01, 0.3)),
    "t2t_remask": ("t2m-t2t-remask", (0.3, 0.5, 0.7, 0.9)),
    "logit_diff": ("t2m-logit-diff", (0.3,)),
    "t2t": ("llada2.1-quality", (0.3, 0.5, 0.7, 0.9)),
}
"""Revision rule: its preset, and the thresholds to choose from."""


class Vocabulary:
    """Tokens of reaction SMILES: a string to ids with both ends marked."""

    def __init__(self, folder: Path) -> None:
        self.ids = {word: index for index, word in enumerate((folder / "vocab.txt").read_text().split())}
        self.pad, self.unknown, self.mask = (self.ids[f"[{name}]"] for name in ("PAD", "UNK", "MASK"))
        self.special = [index for word, index in self.ids.items() if re.fullmatch(r"\[([A-Z]{3,}|unused\d+)\]", word)]

    def encode(self, strings: Sequence[str]) -> Tensor:
        """(B, N) ids, padded on the right."""
        rows = [["[CLS]", *TOKEN.findall(string), "[SEP]"] for string in strings]
        ids = [torch.tensor([self.ids.get(token, self.unknown) for token in row]) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.pad)


@dataclass(frozen=True)
class Drafts:
    """Strings to repair: ids, what they were, and what may change, (B, N) each."""

    ids: Tensor
    target: Tensor
    editable: Tensor

    @property
    def real(self) -> Tensor:
        """(B, N) long, 0 where there is padding."""
        return (self.target != 0).long()


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; None reads the real one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of rxnmapper's model with its vocab.txt")
    parser.add_argument("--development", type=int, default=64, help="strings on which thresholds are chosen")
    parser.add_argument("--held_out", type=int, default=250, help="strings of the table, those after them")
    parser.add_argument("--low", type=float, default=0.05, help="least share of corrupted tokens")
    parser.add_argument("--high", type=float, default=0.15, help="largest share of corrupted tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=64)
    options = parser.parse_args(arguments)
    missing = [name for name in ("config.json", "vocab.txt") if not (options.model / name).is_file()]
    if missing:
        parser.error(
            f"--model {options.model} has no {' and no '.join(missing)}: pass the folder "
            "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k of the package rxnmapper, unpacked."
        )
    return options


def read_strings(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The first strings, on which things are chosen, and those after them."""
    strings = STRINGS.read_text().split()
    wanted = options.development + options.held_out
    if min(options.development, options.held_out) < 2 or wanted > len(strings):
        raise ValueError(
            f"--development {options.development} and --held_out {options.held_out} ask for {wanted} of "
            f"{len(strings)} strings; pass at least 2 each and no more than there are."
        )
    return strings[: options.development], strings[options.development : wanted]


def corrupt(target: Tensor, vocabulary: Vocabulary, low: float, high: float, seed: int) -> Drafts:
    """Each string with a share of its tokens, drawn from [low, high], replaced by others as frequent as they come."""
    random = np.random.default_rng(seed)
    ids, right = target.numpy().copy(), target.numpy()
    editable = ~np.isin(right, vocabulary.special)
    counts = np.bincount(right[editable], minlength=len(vocabulary.ids)).astype(float)
    for row in range(len(ids)):
        places = np.flatnonzero(editable[row])
        wrong = max(round(random.uniform(low, high) * len(places)), 1)
        for place in random.choice(places, wrong, replace=False):
            others = np.where(np.arange(len(counts)) == right[row, place], 0.0, counts)
            ids[row, place] = random.choice(len(counts), p=others / others.sum())
    return Drafts(torch.from_numpy(ids), target, torch.from_numpy(editable))


def revise(
    model: Any, drafts: Drafts, vocabulary: Vocabulary, rule: str, threshold: float | None, batch_size: int
) -> RevisionMetrics:
    """All drafts under one rule, or as they are; graded with their trajectories."""
    if rule == AS_IT_IS:
        states = drafts.ids[None].numpy()
        nothing = np.zeros((0, *drafts.ids.shape), dtype=np.int64)
        return revision_metrics((states, nothing), drafts.target, drafts.editable, vocabulary.mask)
    settings = {"preset": RULES[rule][0], "revise_threshold": threshold, "block_length": None}
    parts = []
    for start in range(0, len(drafts.ids), batch_size):
        rows = slice(start, start + batch_size)
        parts.append(
            model.generate_reflective(
                drafts.ids[rows],
                attention_mask=drafts.real[rows],
                editable_mask=drafts.editable[rows],
                suppressed_token_ids=[token for token in vocabulary.special if token != vocabulary.mask],
                output_trajectory=True,
                **settings,
            ).trajectory
        )
    states, actions = join([part.states for part in parts], True), join([part.actions for part in parts], False)
    return revision_metrics((states, actions), drafts.target, drafts.editable, vocabulary.mask)


def join(parts: Sequence[Tensor], repeat: bool) -> npt.NDArray[np.int64]:
    """(S, b, N) each to (S, B, N): short ones go on with their last entry, or with zeros."""
    longest = max(len(part) for part in parts)
    grown = []
    for part in parts:
        missing = longest - len(part)
        more = part[-1:].expand(missing, -1, -1) if repeat else part.new_zeros(missing, *part.shape[1:])
        grown.append(torch.cat((part, more)))
    return torch.cat(grown, dim=1).long().numpy()


def choose(model: Any, drafts: Drafts, vocabulary: Vocabulary, batch_size: int) -> dict[str, dict[float, float]]:
    """Token accuracy on the development strings, of every rule at every threshold."""
    return {
        rule: {
            threshold: revise(model, drafts, vocabulary, rule, threshold, batch_size).token_accuracy.value
            for threshold in thresholds
        }
        for rule, (_, thresholds) in RULES.items()
    }


def table_row(name: str, threshold: float | None, metrics: RevisionMetrics, before: RevisionMetrics) -> Row:
    """One line of the table."""
    difference = paired_difference_interval(metrics.row_accuracy, before.row_accuracy)
    return {
        "what": name if threshold is None else f"{name} {threshold:g}",
        "token accuracy": shown_interval(metrics.token_accuracy),
        "difference": "-" if name == AS_IT_IS else shown_interval(difference, digits=2),
        "exact": shown_interval(metrics.exact_rows),
        "edits/token": f"{metrics.edits_per_token.value:.3f}",
        "precision": shown_interval(metrics.remask_precision),
        "recall": shown_interval(metrics.remask_recall),
        "replayed": shown_interval(metrics.replay_mistake),
        "forwards": metrics.curve[-1].forwards,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Choose, measure, print and save; the result."""
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    vocabulary = Vocabulary(options.model)
    model = RMForMaskedDiffusion.from_backbone(str(options.model), mask_token_id=vocabulary.mask, history=False).eval()
    development, held_out = (
        corrupt(vocabulary.encode(strings), vocabulary, options.low, options.high, options.seed + part)
        for part, strings in enumerate(read_strings(options))
    )
    chosen = choose(model, development, vocabulary, options.batch_size)
    thresholds = {rule: max(values, key=values.__getitem__) for rule, values in chosen.items()}
    best = max(thresholds, key=lambda rule: chosen[rule][thresholds[rule]])
    before = revise(model, held_out, vocabulary, AS_IT_IS, None, options.batch_size)
    runs: dict[str, tuple[float | None, RevisionMetrics]] = {AS_IT_IS: (None, before)}
    for rule, threshold in thresholds.items():
        runs[rule] = threshold, revise(model, held_out, vocabulary, rule, threshold, options.batch_size)
    rows = [table_row(name, threshold, metrics, before) for name, (threshold, metrics) in runs.items()]
    print_table(f"{options.held_out} corrupted reactions, seed {options.seed}; percent [95 % interval]", rows)
    gain = paired_difference_interval(runs[best][1].row_accuracy, before.row_accuracy)
    points = f"{shown_interval(gain, digits=2)} points of token accuracy"
    print(f"best on the development strings: {best}; against as it is: {points}")
    result = {
        "rules": {name: {"threshold": threshold, **metrics.flat()} for name, (threshold, metrics) in runs.items()},
        "curves": {
            name: [(p.forwards, round(p.token_accuracy.value, 5)) for p in metrics.curve]
            for name, (_, metrics) in runs.items()
        },
        "best": best,
        "gain": gain._asdict(),
        "development_token_accuracy": chosen,
        "settings": {name: v for name, v in vars(options).items() if name != "model"},
    }
    add_result("training_free", result)
    return result


if __name__ == "__main__":
    main()
