"""
The text pipeline on published files, end to end with a small network: what counts is that every part holds.

    python benchmarks/real_files.py --gsm8k gsm8k/train.jsonl --math math/train.jsonl --mbpp mbpp_train.jsonl

First the graders: reference solutions, each to its own problem and to another one's (a random cycle, seed 0). Then
the recipes: an untrained LLaDA of some 0.4 M parameters with a byte-level tokenizer fitted on the training file goes
through recipes/math.py and recipes/mbpp.py: base, vanilla SFT and RM, a few steps each, decoded, graded (programs in
the sandbox) and reported. Its scores are those of a network that has seen next to nothing.

The files are not part of the project: without one this says what it needs, and measures nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from _common import Row, add_result, print_table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_rm.families_rm import LLaDAModelLM
from hf_rm.llada import LLaDAConfig
from hf_rm.tasks.code.tasks import CodeTask
from hf_rm.tasks.math.tasks import MathTask
from hf_rm.tasks.text import TextSample

RECIPES = Path(__file__).parent.parent / "recipes"
FILES = {
    "gsm8k": "openai/gsm8k, main, train: JSONL with question and answer",
    "math": "MATH's training problems with solutions: JSONL with problem and solution",
    "mbpp": "MBPP, full: JSONL with task_id, text, code and test_list",
}
LENGTH = 1024


def grade_references(task: MathTask | CodeTask, count: int) -> Row:
    """How many reference solutions solve their own problem, and how many that of another one."""
    samples = [sample for sample in [*task.train(), *task.test()] if sample.completion]
    Random(0).shuffle(samples)
    samples = samples[:count]
    began = time.perf_counter()
    own = sum(task.grade(sample, sample.completion) for sample in samples)
    others = [*samples[1:], samples[0]]
    other = sum(task.grade(sample, another.completion) for sample, another in zip(samples, others, strict=True))
    seconds = time.perf_counter() - began
    return {"file": task.name, "solutions": len(samples), "own": own, "another's": other, "seconds": round(seconds, 1)}


def build_base(samples: list[TextSample], folder: Path) -> None:
    """An untrained network and a tokenizer fitted on the samples."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<pad>", "<eos>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((sample.prompt + sample.completion for sample in samples), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        mask_token="<mask>",
        model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    config = LLaDAConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2 * LENGTH,
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        mask_token_id=fast.mask_token_id,
    )
    torch.manual_seed(0)  # a second run reads the first one's stages back
    LLaDAModelLM(config).save_pretrained(folder)


def run_recipe(name: str, recipe: str, data: str, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Base, SFT and RM through the recipe; one row each, from its own records."""
    decoding = {"steps": options.forwards}
    settings = {
        "base": folder / "base",
        "output_dir": folder / "run",
        "task": name,
        "train_data": data,
        "completion_length": options.completion_length,
        "max_length": LENGTH,
        "eval_samples": options.samples,
        "recall_samples": options.samples,
        "eval_batch_size": 8,
        "train_samples": options.samples * 4,
        "sft_decoding": json.dumps({"preset": "llada", **decoding}),
        "rm_decoding": json.dumps({"reveal": "confidence", **decoding, "max_steps": options.forwards + 4}),
        "max_steps": options.steps,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.001,
        "blank_rows": 0.5,
        "mask_row_batches": 4,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    began = time.perf_counter()
    words = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
    # A config of its own keeps the recipe from its embedded default.
    empty = folder / "empty.yaml"
    empty.write_text("systems: [base, sft, rm]\n")
    subprocess.run([sys.executable, str(RECIPES / recipe), "--config", str(empty), *words], check=True)
    seconds = time.perf_counter() - began
    records = json.loads((folder / "run" / "records.json").read_text())["systems"]
    rows = []
    for record in records:
        rows.append(
            {
                "file": name,
                "system": record["system"],
                "problems": record["samples"],
                "too long": record["too_long"],
                "solved": round(record["accuracy"] * record["accuracy_count"]),
                "forwards": round(record["forwards"], 1),
                "seconds of all": round(seconds, 1),
            }
        )
    return rows


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, form in FILES.items():
        parser.add_argument(f"--{name}", help=f"A file of {form}; left out without it.")
    parser.add_argument("--work", type=Path, default=Path("outputs/real-files"))
    parser.add_argument("--solutions", type=int, default=10_000, help="Reference solutions graded, at most.")
    parser.add_argument("--programs", type=int, default=60, help="Reference programs graded, at most.")
    parser.add_argument("--samples", type=int, default=24, help="Held-out problems decoded.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--forwards", type=int, default=8)
    parser.add_argument("--completion_length", type=int, default=256)
    options = parser.parse_args(argv)
    for name in FILES:
        if getattr(options, name) is not None and not Path(getattr(options, name)).exists():
            parser.error(f"--{name} {getattr(options, name)} is no file")
    return options


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Measure, print and save; without a file say what is needed."""
    options = parse_arguments(argv)
    given = {name: getattr(options, name) for name in FILES if getattr(options, name) is not None}
    if not given:
        print("real_files measures nothing without published files, which are not part of the project. Pass any of:")
        for name, form in FILES.items():
            print(f"  --{name} FILE   {form}")
        return None
    graded, solved = [], []
    for name, data in given.items():
        code = name == "mbpp"
        task = CodeTask(name, data) if code else MathTask(name, data)
        graded.append(grade_references(task, options.programs if code else options.solutions))
        folder = options.work / name
        folder.mkdir(parents=True, exist_ok=True)
        build_base(task.train(), folder / "base")
        solved += run_recipe(name, "mbpp.py" if code else "math.py", data, folder, options)
    print_table("Reference solutions", graded)
    print_table("The recipes with a network that has seen next to nothing", solved)
    result = {"graded": graded, "solved": solved}
    add_result("real_files", result)
    return result


if __name__ == "__main__":
    main()
