# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Model cards: what a model is, how it was measured, how it is loaded; metadata in the Hub's two forms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

TAGS = ("hf_rm", "reflective-masking", "mask-diffusion")

_TEMPLATE = """---
{metadata}
---

# {name}

{summary}

| | |
| --- | --- |
{facts}

## How to load it

With hf_rm installed:

```python
from hf_rm import {wrapper}

model = {wrapper}.from_pretrained("{repo_id}")
```

The same by way of the Auto classes, once hf_rm is imported:

```python
import hf_rm
from transformers import AutoModel

model = AutoModel.from_pretrained("{repo_id}")
```

Without hf_rm, from the code in this repository:

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True)
```

Then `model.generate_reflective(input_ids, max_new_tokens=128)`; the settings below are its defaults.{loading}

## Settings

{settings}

## Data and training

{training}

## Results

{results}

## Limits

{limits}

## Licence and papers

{licence}

The method is described in:

{citations}
"""

CITATIONS = """\
* Y. Zhang, Y. Bian, J. Qi, Y. Yao, L. Huang, T. Zhou: *Multi-Turn Reflective Masking Elicits Reasoning in Mask
  Diffusion Models*, arXiv:2606.16700, 2026 (the training, the decision rule, History Reference).
* L. Yao and others: *Remask, Don't Replace: Token-to-Mask Refinement in Masked Diffusion Language Models*,
  arXiv:2604.18738, 2026 (revision rules without training).
* *Don't Settle Too Early: Self-Reflective Remasking for Diffusion Language Models*, ICLR 2026 (learned unmasking
  policies)."""


@dataclass(frozen=True)
class Evaluation:
    """
    One measured figure, with what it takes to believe it.

    Args:
        task (`str`): what was asked of the model ("grade-school mathematics").
        dataset (`str`): the data's name, or its Hub id.
        metric (`str`): what was counted ("exact match").
        value (`float`), low (`float`), high (`float`): the figure and its 95 % interval.
        samples (`int`): how many samples it was measured on.
        command (`str`): the command that printed it.
        seed (`int`, *optional*): the seed of data and decoding.
        decoding (`str`): the decoding settings in words.
        benchmark (`str`, *optional*): Hub id of a benchmark's dataset: the figure then also goes to `.eval_results/`.
        benchmark_task (`str`): the task's id within the benchmark.
        date (`str`, *optional*): when it was measured, ISO 8601.
        source_url (`str`, *optional*): where logs are found.

    Raises:
        ValueError: when the value lies outside its interval, or command or samples are missing.

    Example:
        >>> Evaluation("arithmetic", "sums", "exact match", 0.5, 0.4, 0.6, 100, "python eval.py").text
        '0.5 [0.4, 0.6]'
    """

    task: str
    dataset: str
    metric: str
    value: float
    low: float
    high: float
    samples: int
    command: str
    seed: int | None = None
    decoding: str = ""
    benchmark: str | None = None
    benchmark_task: str = "default"
    date: str | None = None
    source_url: str | None = None

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"`value` is {self.value}, outside its interval [{self.low}, {self.high}].")
        if self.samples < 1 or not self.command.strip():
            raise ValueError("An evaluation needs `samples` of at least 1 and the `command` that printed it.")

    @property
    def text(self) -> str:
        """The figure and its interval, as the card prints them."""
        return f"{self.value:g} [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class CardFacts:
    """
    What a card says that the model does not know of itself. Everything is optional; what is missing is not mentioned.

    Args:
        summary (`str`): what the model is for, in a few sentences.
        license (`str`, *optional*): an SPDX name as the Hub knows it ("apache-2.0").
        datasets (sequence of `str`): Hub ids of the training data.
        training (`str`): data, command, seed, steps, time, hardware.
        evaluations (sequence of [`Evaluation`]): figures.
        limits (`str`): what it cannot do.
        tags (sequence of `str`), language (`str`, *optional*), pipeline_tag (`str`): for the Hub's search.
    """

    summary: str = ""
    license: str | None = None
    datasets: Sequence[str] = ()
    training: str = ""
    evaluations: Sequence[Evaluation] = ()
    limits: str = ""
    tags: Sequence[str] = ()
    language: str | None = None
    pipeline_tag: str = "text-generation"


def card_metadata(
    name: str, evaluations: list[EvalResult], *, tags: Iterable[str] = (), license: str | None = None, **fields: Any
) -> ModelCardData:
    """The YAML block of a card: our tags, the licence, evaluation results, and whatever `fields` name."""
    return ModelCardData(
        model_name=name,
        license=license,
        library_name="transformers",
        tags=[*TAGS, *tags],
        eval_results=evaluations or None,
        **fields,
    )


def render_card(template: str, metadata: ModelCardData, **fields: Any) -> ModelCard:
    """A template with `{metadata}` between its rules and `{fields}` in its text, as a card."""
    return ModelCard(template.format(metadata=metadata.to_yaml(), **fields))


def write_model_card(
    folder: str | Path, repo_id: str, config: Any, generation_config: Any, facts: CardFacts, *, adapter: bool = False
) -> Path:
    """
    Write `README.md`, and `.eval_results/*.yaml` for figures on benchmarks of the Hub.

    Args:
        folder (`str` or `Path`): the staged repository.
        repo_id (`str`): its name on the Hub.
        config ([`RMConfig`]): as it is saved there.
        generation_config ([`ReflectiveGenerationConfig`]): as it is saved there.
        facts ([`CardFacts`]): everything else.
        adapter (`bool`): whether it is an adapter's repository.

    Returns:
        `Path`: the card.
    """
    from .layout import is_local

    name, base = repo_id.split("/")[-1], config.backbone_name
    fields: dict[str, Any] = {"pipeline_tag": facts.pipeline_tag}
    if base and not is_local(base):
        fields |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    if facts.datasets:
        fields["datasets"] = list(facts.datasets)
    if facts.language:
        fields["language"] = facts.language
    tags = [*facts.tags, *(["peft"] if adapter else [])]
    metadata = card_metadata(name, _model_index(facts.evaluations), tags=tags, license=facts.license, **fields)
    card = render_card(_TEMPLATE, metadata, **_sections(repo_id, config, generation_config, facts, adapter))
    path = Path(folder) / "README.md"
    card.save(path)
    _write_eval_results(Path(folder), facts.evaluations)
    return path


def _sections(repo_id: str, config: Any, generation_config: Any, facts: CardFacts, adapter: bool) -> dict[str, str]:
    kind = "an adapter for a mask diffusion model" if adapter else "a mask diffusion model"
    what = "reads its own earlier states (History Reference)" if config.history else "reads its current state only"
    learned = getattr(config, "policy_layers", None) is not None
    method = "a learned unmasking policy (RemeDi)" if learned else "Reflective Masking"
    licence = f"Licence of these files: {facts.license}." if facts.license else "No licence is stated for these files."
    return {
        "name": repo_id.split("/")[-1],
        "repo_id": repo_id,
        "wrapper": "RemeDiForMaskedDiffusion" if learned else "RMForMaskedDiffusion",
        "summary": facts.summary
        or f"This is {kind} with {method}: it may mask tokens again that it has written, and {what}.",
        "facts": _rows(_facts(config, adapter)),
        "loading": "\n\nThe base is fetched too. It needs peft; if the base itself needs remote code, pass "
        "`base_trust_remote_code=True`: trust in this repository is not trust in its base."
        if adapter
        else "",
        "settings": "| setting | value |\n| --- | --- |\n" + _rows(_settings(config, generation_config)),
        "training": facts.training or "Not described.",
        "results": _results(facts.evaluations),
        "limits": facts.limits or "Not measured.",
        "licence": licence + (" The base model has its own licence." if config.backbone_name else ""),
        "citations": CITATIONS,
    }


def _facts(config: Any, adapter: bool) -> dict[str, str]:
    revision = f" at {config.backbone_revision}" if config.backbone_revision else ""
    method = "Reflective Masking" if getattr(config, "policy_layers", None) is None else "RemeDi"
    rows = {"Method": method + (" with History Reference" if config.history else "")}
    if config.backbone_name:
        rows["Base model"] = f"{config.backbone_name}{revision}"
    rows["Contents"] = "adapter, wrapper config, code" if adapter else "all weights, config, code"
    return {**rows, "Mask token": str(config.mask_token_id)}


def _settings(config: Any, generation_config: Any) -> dict[str, Any]:
    names = [name for name in config.to_dict() if name.startswith(("history", "policy"))]
    rows = {name: getattr(config, name) for name in names}
    changed = generation_config.to_diff_dict() if generation_config is not None else {}
    return {**rows, **{f"generation: {key}": value for key, value in changed.items() if key != "transformers_version"}}


def _rows(rows: dict[str, Any]) -> str:
    return "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def _results(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return "None recorded."
    lines = [
        "95 % intervals in brackets.",
        "",
        "| task | data | metric | value | n | seed |",
        "| --- |" + " --- |" * 5,
    ]
    for result in evaluations:
        data = f"{result.dataset}{', ' + result.decoding if result.decoding else ''}"
        seed = "-" if result.seed is None else result.seed
        lines.append(f"| {result.task} | {data} | {result.metric} | {result.text} | {result.samples} | {seed} |")
    commands = dict.fromkeys(result.command for result in evaluations)
    return "\n".join([*lines, "", "Printed by:", "", "```bash", *commands, "```"])


def _model_index(evaluations: Sequence[Evaluation]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation",
            task_name=result.task,
            dataset_type=result.benchmark or result.dataset,
            dataset_name=result.dataset,
            metric_type=result.metric,
            metric_name=f"{result.metric} ({result.decoding})" if result.decoding else result.metric,
            metric_value=result.value,
            source_url=result.source_url,
            source_name="evaluation" if result.source_url else None,
        )
        for result in evaluations
    ]


def _write_eval_results(folder: Path, evaluations: Sequence[Evaluation]) -> None:
    files: dict[str, list[EvalResultEntry]] = {}
    for result in evaluations:
        if result.benchmark is None:
            continue
        notes = f"{result.metric}, 95 % interval [{result.low:g}, {result.high:g}], n = {result.samples}"
        entry = EvalResultEntry(
            dataset_id=result.benchmark,
            task_id=result.benchmark_task,
            value=result.value,
            date=result.date,
            source_url=result.source_url,
            notes="; ".join(filter(None, (notes, result.decoding, result.command))),
        )
        files.setdefault(result.benchmark.split("/")[-1], []).append(entry)
    for name, entries in files.items():
        path = folder / ".eval_results" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml_dump(eval_result_entries_to_yaml(entries)))
