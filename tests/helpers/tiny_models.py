"""Models for tests: tiny random backbones, and models whose logits a test writes down itself."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_rm import RMForMaskedDiffusion
from hf_rm.generation_denoiser_rm import Denoised
from hf_rm.generation_rm import ReflectiveGenerationMixin


def llama(
    vocab_size: int = 11, hidden_size: int = 16, layers: int = 1, seed: int = 0, **kwargs: Any
) -> PreTrainedModel:
    """A bidirectional Llama with weights large enough for lively decoding: reveals, re-masks, changes of mind."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=128,
        is_causal=False,
        initializer_range=0.5,
        **kwargs,
    )
    return LlamaForCausalLM(config).eval()


def bert(
    vocab_size: int = 11, hidden_size: int = 16, layers: int = 1, seed: int = 0, **kwargs: Any
) -> PreTrainedModel:
    """A BERT with tied embeddings."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.5,
        **kwargs,
    )
    return BertForMaskedLM(config).eval()


BACKBONES: dict[str, Callable[..., PreTrainedModel]] = {"llama": llama, "bert": bert}


def wrapped(seed: int = 0, vocab_size: int = 11, mask_token_id: int = 0, **kwargs: Any) -> RMForMaskedDiffusion:
    """A wrapped tiny Llama."""
    return RMForMaskedDiffusion.from_backbone(
        llama(vocab_size, seed=seed), mask_token_id=mask_token_id, **kwargs
    ).eval()


def grid(side: int = 3) -> tuple[list[list[int]], list[int | None]]:
    """Position groups of a square grid (rows, columns), and one attention head for each of the two."""
    rows = [i // side for i in range(side * side)]
    columns = [i % side for i in range(side * side)]
    return [rows, columns], [0, 1]


def grid_model(seed: int = 0, **kwargs: Any) -> RMForMaskedDiffusion:
    """A position-group model of 9 cells, with group offsets that matter."""
    position_groups, attention_groups = grid()
    model = wrapped(
        seed,
        position_groups=position_groups,
        attention_groups=attention_groups,
        backbone_positions=False,
        **kwargs,
    )
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.position_group_embeddings.weight)
    return model


class ScriptedModel(ReflectiveGenerationMixin):
    """
    A model without weights: `script(ids)` gives the logits (b, N, V) of the rows it is shown.

    `seen` keeps a copy of the ids of every forward pass.
    """

    def __init__(
        self, script: Callable[[Tensor], Tensor], vocab_size: int = 7, mask_token_id: int | None = 0, **config: Any
    ) -> None:
        self.config = SimpleNamespace(
            **{"vocab_size": vocab_size, "mask_token_id": mask_token_id, "history": False, **config}
        )
        self.device = torch.device("cpu")
        self.script = script
        self.seen: list[Tensor] = []

    def _denoise(
        self,
        input_ids: Tensor,
        attention_mask: Any,
        editable_mask: Any,
        history: Any,
        use_history: Any,
        positions: Tensor | None,
    ) -> Denoised:
        self.seen.append(input_ids.clone())
        logits = self.script(input_ids).clone()
        if positions is not None:
            index = positions.clamp(max=logits.shape[1] - 1)[..., None].expand(-1, -1, logits.shape[-1])
            logits = logits.gather(1, index)
        return Denoised(logits)


def fixed_logits(logits: Tensor) -> Callable[[Tensor], Tensor]:
    """A script that always answers with the same (N, V) logits."""
    return lambda ids: logits.expand(len(ids), *logits.shape).clone()


def forbidden_forward(ids: Tensor) -> Tensor:
    """A script for arguments that must be refused before anything is computed."""
    raise AssertionError(f"a forward pass ran on {ids.tolist()}")


def one_hot_logits(tokens: Tensor, vocab_size: int = 7, mask_token_id: int = 0, mask: float = -5.0) -> Tensor:
    """(b, N) favourite tokens to (b, N, V) logits: 5 for the favourite, `mask` for the mask, 0 for the rest."""
    logits = torch.zeros(*tokens.shape, vocab_size).scatter_(-1, tokens[..., None], 5.0)
    logits[..., mask_token_id] = mask
    return logits
