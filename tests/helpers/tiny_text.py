"""Text for tests: a tokenizer of characters, and a model that writes what a test tells it to."""

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tiny_models import ScriptedModel, one_hot_logits
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hf_rm.families_rm import LLaDAModelLM
from hf_rm.llada import LLaDAConfig

MASK, END = 0, 1


def character_tokenizer(**kwargs: Any) -> PreTrainedTokenizerFast:
    """One token a printable character; 0 is the mask, 1 the end, 2 what is unknown."""
    vocabulary = {token: i for i, token in enumerate(["[MASK]", "[END]", "[UNK]", *string.printable[:96], "\n"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, mask_token="[MASK]", eos_token="[END]", unk_token="[UNK]", **kwargs
    )


def character_llada(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A saved LLaDA that reads characters, of a few thousand random weights."""
    tokenizer = character_tokenizer(pad_token="[END]")
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "mask_token_id": tokenizer.mask_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    LLaDAModelLM(LLaDAConfig(**{**settings, **config})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class WritingModel(ScriptedModel):
    """
    Writes for each prompt its text: (draft, final), where the two differ the draft is taken back first.

    A row is known by its prompt. The canvas has `length` positions.
    """

    def __init__(self, texts: Mapping[str, str | tuple[str, str]], tokenizer: Any, length: int, **config: Any) -> None:
        super().__init__(self._write, vocab_size=len(tokenizer), mask_token_id=MASK, **config)
        self.length = length
        self.weight = torch.zeros(2)

        def canvas(text: str) -> Tensor:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert len(ids) < length, text
            return torch.tensor(ids + [END] * (length - len(ids)))

        pairs = {prompt: (text, text) if isinstance(text, str) else text for prompt, text in texts.items()}
        self.known = {
            tuple(tokenizer(prompt)["input_ids"]): tuple(map(canvas, pair)) for prompt, pair in pairs.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def _write(self, ids: Tensor) -> Tensor:
        wanted = ids.clone()
        for row, line in enumerate(ids):
            prompt, now = line[: -self.length].tolist(), line[-self.length :]
            draft, final = max(
                ((len(p), pair) for p, pair in self.known.items() if tuple(prompt[len(prompt) - len(p) :]) == p),
                key=lambda found: found[0],
            )[1]
            differs, masks = draft != final, now == MASK
            if bool((now[differs] == draft[differs]).any()) and not bool(masks.any()):
                now = torch.where(differs, MASK, draft)
            elif bool(masks[~differs].any()) or not bool(differs.any()):
                now = draft
            else:
                now = torch.where(masks, final, now)
            wanted[row, -self.length :] = now
        return one_hot_logits(wanted, self.config.vocab_size, MASK, mask=1.0)
