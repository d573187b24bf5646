"""A tokenizer of eleven words, and RL trainers of tiny models on it."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from tiny_models import wrapped
from tiny_remedi import BLOCKWISE, tiny_remedi
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_rm.training.grpo import RemaskGRPOConfig, RemaskGRPOTrainer

END = 9


def word_tokenizer() -> PreTrainedTokenizerFast:
    """`w1` to `w8` are 1 to 8; 0 is the mask, 9 the end, 10 what is unknown."""
    vocabulary = {"[MASK]": 0, **{f"w{i}": i for i in range(1, 9)}, "[END]": END, "[UNK]": 10}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, mask_token="[MASK]", eos_token="[END]", unk_token="[UNK]"
    )


def fives(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """The share of fives."""
    return [ids.count(5) / len(ids) for ids in completion_ids]


def prompts(count: int = 8) -> Dataset:
    """Prompts of one to three words."""
    return Dataset.from_list([{"prompt": " ".join(["w1", "w2", "w3"][: 1 + i % 3])} for i in range(count)])


def drafts(count: int = 8) -> Dataset:
    """Canvases of six tokens, all to be revised."""
    rows = [[1 + (i + j) % 8 for j in range(6)] for i in range(count)]
    return Dataset.from_list([{"prompt": "draft", "input_ids": ids, "editable_mask": [True] * 6} for ids in rows])


def rl_trainer(folder: str | Path, model: Any = None, rewards: Any = fives, rows: Any = None, **settings: Any) -> Any:
    """A trainer of a tiny RemeDi; extra arguments are its settings, or `peft_config` and `eval_dataset`."""
    more = {name: settings.pop(name) for name in ("peft_config", "eval_dataset") if name in settings}
    defaults = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_steps": 2,
    }
    args = RemaskGRPOConfig(str(folder), **{**defaults, **settings})
    return RemaskGRPOTrainer(
        tiny_remedi(talkative=False) if model is None else model,
        rewards,
        args,
        prompts() if rows is None else rows,
        processing_class=word_tokenizer(),
        **more,
    )


def block_trainer(folder: str | Path, model: Any = None, **settings: Any) -> Any:
    """The same for a RemeDi with attention by blocks: three of four positions, in six steps, finished ones cached."""
    decoding = {"stop_at_eos": False, "steps": 6, "use_cache": True}
    settings = {"decoding": decoding, "max_completion_length": 12, **settings}
    return rl_trainer(folder, tiny_remedi(talkative=False, **BLOCKWISE) if model is None else model, **settings)


def draft_trainer(folder: str | Path, model: Any = None, **settings: Any) -> Any:
    """The same for RM, on drafts."""
    rows = settings.pop("rows", None)
    settings = {"decoding": {"max_steps": 6}, **settings}
    return rl_trainer(
        folder, wrapped() if model is None else model, rows=drafts() if rows is None else rows, **settings
    )
