"""
Pretrain model_cards/tiny-math-base, the small text model that recipes/math.py starts from.

    accelerate launch recipes/tiny_math_base.py --config recipes/configs/tiny-math-base.yaml

Masked diffusion over texts that are packed one behind another: word problems with their solutions (train split only)
and sheets of sums. Of a sheet the results are masked, of a problem the solution and now and then the question. Nothing
tells the model where an answer ends. An interrupted run continues from its last checkpoint.
"""

import os
import sys

# `recipes/math.py` must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

from hf_rm import RMForMaskedDiffusion
from hf_rm.tasks.math.tiny import MAX_LENGTH, build_math_tokenizer, build_tiny_math_model
from hf_rm.tasks.math.word_problems import generate_problems, generate_sheets
from hf_rm.training import MaskedSFTArguments, MaskedSFTTrainer


@dataclass
class TinyMathBaseArguments:
    """Arguments of this recipe, beside those of MaskedSFTArguments."""

    corpus_seed: int = field(default=0, metadata={"help": "Seed of the texts."})
    sheet_share: float = field(default=0.75, metadata={"help": "Share of sheets of sums among the texts."})
    question_share: float = field(
        default=0.3,
        metadata={"help": "Share of the problems whose question is masked too; of the others the solution."},
    )
    num_layers: int = field(default=4, metadata={"help": "Layers of the network."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the network."})
    intermediate_size: int = field(default=384, metadata={"help": "Width of its feed-forward layers."})

    def __post_init__(self) -> None:
        for name in ("sheet_share", "question_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}: pass a share from 0 to 1.")


def main() -> None:
    """Train the model and save it with its tokenizer and card."""
    arguments, training = TrlParser((TinyMathBaseArguments, MaskedSFTArguments)).parse_args_and_config()
    folder = Path(training.output_dir)
    if (folder / "model.safetensors").exists():
        print(f"finished before: {folder} (delete it to train again)")
        return
    sizes = {name: getattr(arguments, name) for name in ("num_layers", "hidden_size", "intermediate_size")}
    network = build_tiny_math_model(training.seed, **sizes)
    model = RMForMaskedDiffusion.from_backbone(network, history=False)
    rows = PackedTexts(arguments, training)
    began = time.process_time()
    trainer = MaskedSFTTrainer(model, training, train_dataset=rows)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)
    if PartialState().is_main_process:
        minutes = (time.process_time() - began) / 60
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        save(network, folder, write_card(arguments, training, network.num_parameters(), losses, minutes))
        print(f"{folder}: {minutes:.1f} CPU minutes in this process")


class PackedTexts:
    """Windows of texts that stand one behind another with an end token between, made as they are asked for."""

    def __init__(self, arguments: TinyMathBaseArguments, training: MaskedSFTArguments) -> None:
        batch = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
        self.count = training.max_steps * batch
        self.windows, self.editable = pack(
            self.count, arguments.corpus_seed, arguments.sheet_share, arguments.question_share
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.windows[index], "editable_mask": self.editable[index], "idx": index}


_CHUNK = 4096


def pack(count: int, seed: int, sheet_share: float, question_share: float) -> tuple[np.ndarray, np.ndarray]:
    """
    `count` windows of `MAX_LENGTH` tokens, and what may be masked there.

    Of a sheet its results, of some problems everything and of the others the solution. A text that does not fit any
    more goes on in the next window.
    """
    tokenizer = build_math_tokenizer()
    equals = tokenizer.convert_tokens_to_ids("=")
    stream: list[np.ndarray] = []
    editable: list[np.ndarray] = []
    chunk = length = 0
    while length < count * MAX_LENGTH:
        # Seeds of the chunks are their own: a run of more steps begins with the same windows.
        sheets = generate_sheets(round(_CHUNK * sheet_share), seed * _MANY + chunk)
        problems = generate_problems(_CHUNK - len(sheets), seed * _MANY + chunk, split="train")
        texts = [*sheets, *(problem.prompt + problem.completion for problem in problems)]
        encoded = tokenizer(texts)["input_ids"]
        questions = [len(ids) for ids in tokenizer([problem.prompt for problem in problems])["input_ids"]]
        draws = np.random.default_rng([seed, chunk])
        whole = draws.random(len(problems)) < question_share
        for which in draws.permutation(len(texts)):
            ids = np.array([*encoded[which], tokenizer.eos_token_id], dtype=np.int64)
            number = which - len(sheets)
            # With an operand masked as well, a sum has many answers; nearly all of its lines would teach nothing.
            results = np.concatenate([[False], ids[:-1] == equals])
            solution = np.arange(len(ids)) >= (0 if whole[number] else questions[number])
            stream.append(ids)
            editable.append(results if number < 0 else solution)
            length += len(ids)
        chunk += 1
    shape = (count, MAX_LENGTH)
    cut = [np.concatenate(parts)[: count * MAX_LENGTH].reshape(shape) for parts in (stream, editable)]
    return cut[0], cut[1]


_MANY = 1_000_000


def save(network: Any, folder: Path, card: str) -> None:
    """A plain LLaDA folder: weights and config under LLaDA's names, tokenizer, card."""
    tokenizer = build_math_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card)
    network.save_pretrained(folder)  # last: a folder with weights is a finished one


def write_card(
    arguments: TinyMathBaseArguments,
    training: MaskedSFTArguments,
    parameters: int,
    losses: list[float],
    minutes: float,
) -> str:
    """The model card."""
    last = f"{losses[-1]:.3f}" if losses else "not logged"
    return CARD.format(
        parameters=parameters,
        vocabulary=len(build_math_tokenizer()),
        layers=arguments.num_layers,
        width=arguments.hidden_size,
        length=MAX_LENGTH,
        steps=training.max_steps,
        batch=training.train_batch_size * training.gradient_accumulation_steps * training.world_size,
        seed=training.seed,
        corpus_seed=arguments.corpus_seed,
        sheets=arguments.sheet_share,
        questions=arguments.question_share,
        minutes=minutes,
        loss=last,
    )


CARD = """---
library_name: transformers
license: apache-2.0
pipeline_tag: fill-mask
tags:
- hf_rm
- mask-diffusion
- llada
- word-problems
---

# tiny-math-base

A mask diffusion language model of {parameters:,} parameters (LLaDA's architecture, {layers} layers of width {width}),
pretrained on made-up word problems and sheets of sums. It is the base that `recipes/math.py` fine-tunes: small enough
for two CPU cores, and no use for anything but experiments with decoding and post-training.

## Use

```python
from hf_rm import RMForMaskedDiffusion
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("model_cards/tiny-math-base")
# It decodes by training-free rules; "eager" attention is the fastest to train on a CPU.
model = AutoModelForMaskedLM.from_pretrained("model_cards/tiny-math-base", attn_implementation="eager")
# The wrapper to post-train:
model = RMForMaskedDiffusion.from_backbone(model, history=True)
```

## Training

    accelerate launch recipes/tiny_math_base.py --config recipes/configs/tiny-math-base.yaml

* Data: `hf_rm.tasks.math.word_problems`, train split, corpus seed {corpus_seed}: word problems of 2 to 6 operations
  with their solutions, and sheets of sums (share of the texts: {sheets}); windows of {length} tokens, texts one behind
  another.
* Masked diffusion over the results of a sheet and over the solution of a problem, in a share of {questions} of the
  problems over the question too: {steps} steps of {batch} windows, seed {seed}; Muon and AdamW, bf16 autocast;
  {minutes:.1f} CPU minutes. Last logged training loss (bound, nats a token): {loss}.

The test split of the word problems shares no sequence of sentences and no tuple of stated numbers with what it saw.

## Limits

It knows {vocabulary} tokens: the words of the corpus and the numbers 0 to 30. Anything else is `<unk>`. It was never
told to answer, so it solves few problems before fine-tuning, and it makes mistakes after it: that is what it is for.

## Licence

Apache-2.0: weights, tokenizer and data, which is generated by this package.
"""


if __name__ == "__main__":
    main()
