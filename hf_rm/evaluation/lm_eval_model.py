# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
hf_rm's models in lm-eval: the model `hf_rm`, tasks of our own, and no code run outside the sandbox.

    from hf_rm.evaluation.lm_eval_model import ReflectiveLM, evaluate_tasks
    lm = ReflectiveLM("user/llada-rm-math", max_new_tokens=256, steps=128, reveal="confidence")
    evaluate_tasks(lm, ["gsm8k", "arc_challenge", "hf_rm_mbpp"], limit=100)["results"]

or from the shell, with lm-eval's own arguments:

    python -m hf_rm.evaluation.lm_eval_model run --model hf_rm --tasks gsm8k \
        --model_args pretrained=user/llada-rm-math,max_new_tokens=256,steps=128,reveal=confidence

lm-eval's own code tasks run model-written programs in the evaluating process. They are refused, from the shell too;
`hf_rm_mbpp` and `hf_rm_humaneval` take their place and need the sandbox. These, `hf_rm_gsm8k`, `hf_rm_math500` and
`hf_rm_minerva_math` (and its subjects) ask and grade as the recipes do, so that their numbers are the built-in
evaluator's; lm-eval's `gsm8k` and `minerva_math` have other prompts, and the latter wants ANTLR's runtime of version
4.11, where ours takes any.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from ..configuration_rm import WRAPPER_TYPES
from ..generation_config_rm import DEFAULTS, PRESETS
from ..modeling_rm import RMForMaskedDiffusion
from ..tasks.text import TextSample, decoded, prompt_ids
from .multiple_choice import score_continuations
from .text import _fits, batches_by_length, decode_batch, decoding_config

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise ImportError('hf_rm.evaluation.lm_eval_model needs lm-eval: pip install "hf-rm[eval]"') from error

logger = logging.get_logger(__name__)

TASKS = Path(__file__).with_name("lm_eval_tasks")
# Bundled tasks whose metrics execute what the model wrote, in this process. Those marked `unsafe_code` are found too.
EXECUTES_CODE = re.compile(r"^(mbpp|humaneval|cruxeval|(longproc_)?pseudo_to_code)")
DEFAULT_LENGTH = 256
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_k", "top_p")


@register_model("hf_rm")
class ReflectiveLM(LM):
    """
    A model of hf_rm for lm-eval.

    What is given here wins over what a task asks for; a task fills in what was left open: the length of the canvas
    (`max_gen_toks`), whether and how to sample, and any setting of decoding that ``--gen_kwargs`` names.

    Args:
        pretrained: A Hub name, a folder, or a loaded model with `generate_reflective`. A bare backbone is wrapped,
            without history.
        tokenizer: Name, folder or object; by default the model's.
        adapter: An adapter to load into the model, by name or folder.
        batch_size: Rows at a time; requests of similar length share a batch.
        max_batch_size: Of no meaning here; lm-eval passes it.
        device: Where to put a model that is loaded by name; the CPU where a CUDA device is named and none is there.
        dtype: Of a model that is loaded by name.
        seed: With a document's number it makes that document's random numbers.
        max_new_tokens: Length of the canvas, whatever the task says; 256 where nobody says anything.
        num_samples: Draws of the Monte-Carlo likelihood; None for one forward pass (see
            [`~hf_rm.evaluation.multiple_choice`]).
        mask_token_id: For a backbone that does not say.
        trust_remote_code: For a model or tokenizer that is loaded by name.
        decoding: Settings of [`ReflectiveGenerationConfig`]; the rest is the model's own generation config.

    Raises:
        ValueError: For settings that cannot work.

    Example:
        >>> ReflectiveLM("user/llada-rm-math", preset="llada", steps=64, max_new_tokens=128)  # doctest: +SKIP
    """

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any = None,
        adapter: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        seed: int = 0,
        max_new_tokens: int | None = None,
        num_samples: int | None = None,
        mask_token_id: int | None = None,
        trust_remote_code: bool = False,
        **decoding: Any,
    ) -> None:
        super().__init__()
        self.rows = _batch_size(batch_size)
        # lm-eval's shell leaves the word as it is; no setting has a value of that name.
        decoding = {name: None if value in ("none", "None") else value for name, value in decoding.items()}
        unknown = sorted(set(decoding) - set(DEFAULTS))
        if unknown:
            raise ValueError(
                f"unknown argument(s) {', '.join(map(repr, unknown))}: pass arguments of ReflectiveLM or settings of "
                "ReflectiveGenerationConfig."
            )
        if isinstance(pretrained, str):
            self.model = _load(pretrained, mask_token_id, dtype, trust_remote_code)
            if str(device).startswith("cuda") and not torch.cuda.is_available():
                logger.warning(f"device is {device!r}, lm-eval's default, but there is none here: the CPU is used.")
            elif device is not None:
                self.model.to(device)
            tokenizer = pretrained if tokenizer is None else tokenizer
        else:
            self.model = pretrained
        if isinstance(tokenizer, str):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust_remote_code)
        if tokenizer is None:
            raise ValueError("`tokenizer` is None: a model that is loaded already needs its tokenizer.")
        if adapter is not None:
            from ..hub import load_adapter

            load_adapter(self.model, adapter)
        self.tokenizer = tokenizer
        self.seed, self.num_samples = seed, num_samples
        self.length = max_new_tokens
        self.decoding = decoding
        decoding_config(self.model, decoding, DEFAULT_LENGTH if max_new_tokens is None else max_new_tokens)

    @property
    def device(self) -> Any:
        return self.model.device

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's template, or the one of that name; empty where none is asked for."""
        if chat_template is False:
            return ""
        return str(self.tokenizer.get_chat_template(chat_template if isinstance(chat_template, str) else None))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one prompt."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval records of the model: how it decodes."""
        settings = {"max_new_tokens": self.length, "num_samples": self.num_samples, "seed": self.seed}
        return {"hf_rm": {**settings, **{name: repr(value) for name, value in self.decoding.items()}}}

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Decode (context, settings) requests; a context that does not fit gets an empty text, and a warning."""
        jobs: dict[str, list[int]] = {}
        samples, stops = [], []
        repeats: Counter[Any] = Counter()
        for index, request in enumerate(requests):
            refuse_unsafe(request.task_name)
            context, wanted = request.args
            length, settings, until = self._settings(wanted)
            name = context if request.doc_id is None else str(request.doc_id)
            again = repeats[request.task_name, name]
            repeats[request.task_name, name] += 1
            samples.append(TextSample(f"{name}/{again}" if again else name, self._without_beginning(context)))
            stops.append(until)
            jobs.setdefault(json.dumps([length, settings], sort_keys=True), []).append(index)
        texts = [""] * len(requests)
        progress = logging.tqdm(total=len(requests), desc="generate", disable=disable_tqdm)
        left_out = 0
        for job, indices in jobs.items():
            length, settings = json.loads(job)
            config = decoding_config(self.model, settings, length)
            prompts = [prompt_ids(samples[index], self.tokenizer) for index in indices]
            fits = [_fits(self.model, len(prompt) + length) for prompt in prompts]
            left_out += fits.count(False)
            for batch in batches_by_length([len(prompt) for prompt in prompts], fits, self.rows):
                keys = [samples[indices[place]].key for place in batch]
                rows = [prompts[place] for place in batch]
                canvases = decode_batch(self.model, self.tokenizer, rows, keys, config, self.seed)
                for place, canvas in zip(batch, canvases, strict=True):
                    index = indices[place]
                    texts[index] = _until(decoded(canvas.ids, self.tokenizer), stops[index])
                    self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                progress.update(len(batch))
        progress.close()
        if left_out:
            logger.warning(
                f"{left_out} of {len(requests)} prompts do not fit into the model's context together with the canvas: "
                "their texts are empty. Pass a smaller max_new_tokens or fewer solved examples."
            )
        return texts

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score (context, continuation) requests."""
        for request in requests:
            refuse_unsafe(request.task_name)
        pairs = [(self._without_beginning(request.args[0]), request.args[1]) for request in requests]
        scores = score_continuations(
            self.model, self.tokenizer, pairs, self.num_samples, self.rows, self.seed, progress_bar=not disable_tqdm
        )
        results = [(score.log_likelihood, score.greedy) for score in scores]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """A bound on the likelihood of whole texts, by Monte Carlo."""
        if self.num_samples is None:
            raise ValueError(
                "`num_samples` is None: the likelihood of whole texts is known by its Monte-Carlo bound alone, one "
                "forward pass over a text of masks says nothing. Pass num_samples=128."
            )
        pairs = [("", request.args[0]) for request in requests]
        scores = score_continuations(
            self.model, self.tokenizer, pairs, self.num_samples, self.rows, self.seed, progress_bar=not disable_tqdm
        )
        for request, score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, score.log_likelihood)
        return [score.log_likelihood for score in scores]

    def _settings(self, wanted: Mapping[str, Any]) -> tuple[int, dict[str, Any], list[str]]:
        """Length of the canvas, decoding settings and stop words of one request."""
        asked = {name: value for name, value in wanted.items() if value is not None}
        until = asked.pop("until", [])
        lengths = [int(asked.pop(name)) for name in _LENGTHS if name in asked]
        length = self.length or (lengths[0] if lengths else DEFAULT_LENGTH)
        sampling = asked.pop("do_sample", None)
        if sampling is False:
            asked = {name: value for name, value in asked.items() if name not in _SAMPLING} | {"temperature": 0.0}
        elif sampling:
            asked.setdefault("temperature", 1.0)
        unknown = sorted(set(asked) - set(DEFAULTS))
        if unknown:
            raise ValueError(
                f"the task asks for the generation setting(s) {', '.join(map(repr, unknown))}, which masked decoding "
                "does not have: leave them out of the task's generation_kwargs."
            )
        own = {**PRESETS.get(self.decoding.get("preset") or "", {}), **self.decoding}
        settings = {name: value for name, value in asked.items() if name not in own} | self.decoding
        if {**asked, **own}.get("temperature", 1.0) == 0:
            settings = {name: v for name, v in settings.items() if name not in ("top_k", "top_p") or name in own}
        return length, settings, [until] if isinstance(until, str) else list(until)

    def _without_beginning(self, context: str) -> str:
        """A chat template's text begins with the token that the tokenizer puts there anyway."""
        begin = self.tokenizer.bos_token
        if (
            begin
            and context.startswith(begin)
            and self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        ):
            return context[len(begin) :]
        return context


def _until(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop word."""
    return text[: min([text.find(stop) for stop in stops if stop and stop in text], default=len(text))]


def _batch_size(value: int | str | None) -> int:
    if value is None:
        return 8
    if isinstance(value, bool) or not str(value).isdigit() or int(value) < 1:
        raise ValueError(f"batch_size is {value!r}: pass a number of rows; the largest that fits is not looked for.")
    return int(value)


def _load(name: str, mask_token_id: int | None, dtype: str, trust_remote_code: bool) -> Any:
    """A saved wrapper, an adapter's repository, or a backbone wrapped without history."""
    loading: dict[str, Any] = {"dtype": dtype}
    if PreTrainedConfig.get_config_dict(name)[0].get("model_type") in WRAPPER_TYPES:
        return AutoModel.from_pretrained(name, **loading).eval()
    loading["trust_remote_code"] = trust_remote_code
    return RMForMaskedDiffusion.from_backbone(
        name, mask_token_id=mask_token_id, history=False, backbone_kwargs=loading
    ).eval()


# Tasks


def refuse_unsafe(task: str | None, marked: bool = False) -> None:
    """
    Refuse a task of lm-eval that runs model-written code in this process.

    Args:
        task: Its name.
        marked: Whether it is marked `unsafe_code`.

    Raises:
        ValueError: If it is one; the message names the task and what to run in its place.

    Example:
        >>> refuse_unsafe("hf_rm_mbpp")
        >>> refuse_unsafe("mbpp")
        Traceback (most recent call last):
            ...
        ValueError: the task 'mbpp' runs model-written code outside any sandbox; use hf_rm_mbpp or hf_rm_humaneval.
    """
    if task is not None and (marked or EXECUTES_CODE.match(task)):
        raise ValueError(
            f"the task {task!r} runs model-written code outside any sandbox; use hf_rm_mbpp or hf_rm_humaneval."
        )


def evaluate_tasks(
    lm: Any,
    tasks: Sequence[str],
    data_files: Mapping[str, str | Path] | None = None,
    include_path: str | Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """
    Run lm-eval's `simple_evaluate`, with our tasks known and code tasks outside the sandbox refused.

    Args:
        lm: A [`ReflectiveLM`].
        tasks: Names of tasks, groups or tags, or YAML files.
        data_files: For a task (as `tasks` names it, or in a group that it names) a local JSON or JSONL file that takes
            the place of its test set; no solved examples are shown then.
        include_path: A further folder of tasks.
        settings: Further arguments of `simple_evaluate`: `limit`, `num_fewshot`, `apply_chat_template`, `gen_kwargs`.

    Returns:
        What `simple_evaluate` returns; ``["results"]`` has the metrics.

    Raises:
        ValueError: For a task that runs code outside the sandbox, whatever group it is in, and before it is loaded;
            for `confirm_run_unsafe_code`; for data for a task that is not asked for.
        OSError: For a data file that is not there.

    Example:
        >>> evaluate_tasks(lm, ["gsm8k"], data_files={"gsm8k": "test.jsonl"})["results"]["gsm8k"]  # doctest: +SKIP
    """
    if settings.get("confirm_run_unsafe_code"):
        raise ValueError("`confirm_run_unsafe_code` is True: code runs in the sandbox alone; use hf_rm_mbpp.")
    files = {name: Path(path).resolve() for name, path in (data_files or {}).items()}
    for path in files.values():
        if not path.is_file():
            raise OSError(f"{path} is no file: pass a JSON or JSONL file.")
    folders = (str(TASKS), *(() if include_path is None else (str(include_path),)))
    manager = TaskManager(include_path=list(folders), include_defaults=False)
    parts = _refused_or_known(tasks, manager)
    if any(None in part.values() for part in parts):  # the index of all that lm-eval has takes half a minute to read
        manager = _with_bundled(folders)
        parts = _refused_or_known(tasks, manager)
    unknown = set(files) - set(tasks) - {name for part in parts for name in part}
    if unknown:
        raise ValueError(f"`data_files` names {sorted(unknown)}, but `tasks` is {list(tasks)}.")
    known = dict(manager.task_index)
    with tempfile.TemporaryDirectory() as folder:
        try:
            named = [
                _with_files(task, part, files, Path(folder) / str(place), manager)
                for place, (task, part) in enumerate(zip(tasks, parts, strict=True))
            ]
            for spec in named:
                for name, loaded in manager.load(spec)["tasks"].items():
                    refuse_unsafe(name, bool(getattr(loaded, "UNSAFE_CODE", False)))
            result: dict[str, Any] = simple_evaluate(model=lm, tasks=named, task_manager=manager, **settings)
        finally:
            manager.task_index.update(known)
    return result


@lru_cache(maxsize=2)
def _with_bundled(folders: tuple[str, ...]) -> Any:
    return TaskManager(include_path=list(folders))


def _refused_or_known(tasks: Sequence[str], manager: Any) -> list[dict[str, Any]]:
    """The parts of every task, none of them unsafe by its name or by what the index says."""
    parts = [_parts(task, manager) for task in tasks]
    for part in parts:
        for name, entry in part.items():
            refuse_unsafe(name, bool(entry is not None and (entry.cfg or {}).get("unsafe_code")))
    return parts


def _parts(task: str, manager: Any) -> dict[str, Any]:
    """
    A task and all that is in it, where it is a group or tag: name -> what the index knows, None for nothing.

    Nothing is imported: the modules of lm-eval's code tasks run code when they are loaded.
    """
    path = Path(task)
    if path.is_file():
        near = TaskManager(include_path=[str(path.parent)], include_defaults=False).task_index.values()
        return {entry.name: entry for entry in near if entry.yaml_path and entry.yaml_path.samefile(path)}
    found: dict[str, Any] = {}
    waiting = [task]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        entry = found[name] = manager.task_index.get(name)
        if entry is None:
            continue
        members = (entry.cfg or {}).get("task")
        listed = members if isinstance(members, list) else []
        waiting += [m if isinstance(m, str) else str(m.get("task") or m.get("group")) for m in listed]
        waiting += entry.tags if entry.kind.name == "TAG" else ()
    return found


def _with_files(task: str, parts: Mapping[str, Any], files: Mapping[str, Path], folder: Path, manager: Any) -> str:
    """A task as it is, or a file of one like it over a local file; such a file of a group the manager is told of."""
    if not {task, *parts} & set(files):
        return task
    folder.mkdir()
    entry = parts.get(task, next(iter(parts.values()), None))
    kind = None if entry is None or entry.yaml_path is None else entry.kind.name
    listed = entry.cfg["task"] if kind == "GROUP" else []
    members: list[dict[str, Any]] = [dict(one) if isinstance(one, dict) else {"task": one} for one in listed]
    if kind == "TASK":
        config = {"task": entry.name, **_local(files[task if task in files else entry.name], folder)}
    elif kind == "GROUP" and set(parts) & set(files) <= {member.get("task") for member in members}:
        local = {name: _local(files[name], folder) for name in set(parts) & set(files)}
        config = {"group": entry.name, "task": [member | local.get(member.get("task", ""), {}) for member in members]}
    else:
        raise ValueError(
            f"`data_files` names {task!r} or what is in it, but no single task: name the tasks of a group of tasks."
        )
    config["include"] = str(entry.yaml_path.resolve())
    path = folder / "task.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    if kind == "TASK":
        return str(path)
    manager.task_index[entry.name] = replace(entry, yaml_path=path)  # lm-eval reads no group by its file
    return str(entry.name)


def _local(path: Path, folder: Path) -> dict[str, Any]:
    """The settings of a task over a local file."""
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(folder / "cache")},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None,
        "num_fewshot": 0,
    }


# The shell


def main() -> None:
    """lm-eval's shell: our tasks are known beside the user's own, and no task runs code outside the sandbox."""
    from lm_eval._cli import HarnessCLI
    from lm_eval.config.evaluate_config import EvaluatorConfig

    shell = HarnessCLI()
    arguments = shell.parse_args()
    file = getattr(arguments, "config", None)
    config = EvaluatorConfig.load_yaml_config(file) if file else {}
    # Without it lm-eval refuses what is marked `unsafe_code`, and `refuse_unsafe` what is known by its name.
    if getattr(arguments, "confirm_run_unsafe_code", config.get("confirm_run_unsafe_code")):
        sys.exit(
            "--confirm_run_unsafe_code is given: code runs in the sandbox alone; use hf_rm_mbpp or hf_rm_humaneval."
        )
    if hasattr(arguments, "include_path"):
        given = arguments.include_path or config.get("include_path")
        arguments.include_path = [str(TASKS), *([given] if given else [])]
    shell.execute(arguments)


if __name__ == "__main__":
    main()
