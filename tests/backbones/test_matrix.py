"""Every family through the same tests, each loaded from a tiny checkpoint in its published naming."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_families import FAMILIES_UNDER_TEST, MASK, VOCABULARY, write
from torch import Tensor

from hf_rm import RMForMaskedDiffusion
from hf_rm.backbones import measure

NAMES = sorted(FAMILIES_UNDER_TEST)
Load = Callable[..., RMForMaskedDiffusion]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory, name: str) -> Load:
    """Loads the family's wrapper anew, by the probe's leave."""
    folder = write(name, tmp_path_factory.mktemp(name))

    def wrapper(**kwargs: object) -> RMForMaskedDiffusion:
        mask_token_id = FAMILIES_UNDER_TEST[name].mask_token_id
        return RMForMaskedDiffusion.from_backbone(str(folder), mask_token_id, **kwargs).eval()

    return wrapper


@pytest.fixture(scope="module")
def model(load: Load) -> RMForMaskedDiffusion:
    return load()


def tokens(rows: int, length: int) -> Tensor:
    """Words (from 8 on: special tokens and iLLaDA's mask are below) and a few masks."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, MASK - 1, (rows, length), generator=generator)
    return ids.masked_fill(torch.rand(rows, length, generator=generator) < 0.2, MASK)


def pad(ids: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
    """Padded ids and their mask; what stands in the padding is a word, so that attending to it shows."""
    padded = torch.nn.functional.pad(ids, (left, right), value=7)
    return padded, torch.nn.functional.pad(torch.ones_like(ids), (left, right))


@torch.no_grad()
def logits_of(model: RMForMaskedDiffusion, ids: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
    return model(ids, attention_mask, **kwargs).logits


def test_the_probe_sees_what_the_family_is(model: RMForMaskedDiffusion, name: str) -> None:
    expected, traits = FAMILIES_UNDER_TEST[name], measure(model)
    assert traits.problems == ()
    assert type(model.model).__name__ == traits.backbone_class == expected.model_class
    assert traits.family is not None
    assert traits.mask_token_id == (expected.mask_token_id or MASK)
    assert traits.mask_source == ("the config" if expected.mask_token_id is None else traits.mask_source)
    assert traits.tied_head is expected.tied
    assert traits.embedding_width == expected.embedding_width
    assert traits.logits_shift is expected.logits_shift
    assert traits.attention_block_length == expected.attention_block_length
    assert traits.block_causal is (None if expected.attention_block_length is None else True)
    assert traits.bidirectional and traits.honours_2d_mask and traits.honours_4d_mask and traits.honours_head_mask
    assert traits.embeds_error == 0


def test_forward(model: RMForMaskedDiffusion) -> None:
    ids = tokens(2, 12)
    logits = logits_of(model, ids)
    assert logits.shape == (2, 12, VOCABULARY) and logits.isfinite().all()
    # Without a past, history changes nothing; a past does.
    assert torch.equal(logits, logits_of(model, ids, use_history=False))
    with torch.no_grad():
        history = model(tokens(2, 12).roll(1, 0)).history
    assert (logits_of(model, ids, history=history) - logits).abs().max() > 1e-3


@pytest.mark.parametrize("left", [0, 5], ids=["", "left"])
@pytest.mark.parametrize("right", [0, 3], ids=["", "right"])
def test_padding_changes_nothing(model: RMForMaskedDiffusion, left: int, right: int) -> None:
    ids = tokens(1, 12)
    padded, mask = pad(ids, left, right)
    alone = logits_of(model, ids)
    got = logits_of(model, padded, mask)[:, left : left + 12]
    torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-5)


def test_neighbours_in_the_batch_change_nothing(model: RMForMaskedDiffusion) -> None:
    ids = tokens(3, 12)
    together = logits_of(model, ids)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], logits_of(model, ids[row : row + 1]), atol=1e-5, rtol=1e-5)
    short, short_mask = pad(ids[:1, :8], 4, 0)
    batch, mask = torch.cat((short, ids[1:2])), torch.cat((short_mask, torch.ones_like(ids[1:2])))
    alone = logits_of(model, ids[:1, :8])
    torch.testing.assert_close(logits_of(model, batch, mask)[:1, 4:], alone, atol=1e-5, rtol=1e-5)


def test_decoding_ends_without_a_mask(model: RMForMaskedDiffusion) -> None:
    prompts = tokens(2, 6).clamp(max=MASK - 1)
    prompts, mask = torch.cat((prompts, pad(prompts[:1, 2:], 2, 0)[0])), torch.ones(3, 6, dtype=torch.long)
    mask[2, :2] = 0
    out = model.generate_reflective(
        prompts, attention_mask=mask, max_new_tokens=8, reveal="confidence", steps=4, max_revision_rounds=4
    )
    assert out.sequences.shape == (3, 14)
    assert not (out.sequences == model.config.mask_token_id).any()
    assert torch.equal(out.sequences[:, :6], prompts)
    alone = model.generate_reflective(
        prompts[2:, 2:], max_new_tokens=8, reveal="confidence", steps=4, max_revision_rounds=4
    )
    assert torch.equal(alone.sequences[0], out.sequences[2, 2:])


def test_saving_and_loading_change_nothing(model: RMForMaskedDiffusion, tmp_path: Path) -> None:
    ids = tokens(2, 12)
    model.save_pretrained(tmp_path)
    again = RMForMaskedDiffusion.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(again, ids), logits_of(model, ids))
    for setting in ("mask_token_id", "logits_shift", "attention_block_length", "suppressed_token_ids"):
        assert getattr(again.config, setting) == getattr(model.config, setting)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert measure(again).problems == ()


def test_bfloat16_passes_the_probe(load: Load, name: str) -> None:
    # Grouped matrix products want rows of 16 bytes, which experts of width 12 have in 32 bits only.
    experts = {"experts_implementation": "eager"} if name in ("llada2", "llada_moe") else {}
    traits = measure(load(backbone_kwargs={"dtype": torch.bfloat16, **experts}))
    assert traits.dtype == "bfloat16" and traits.problems == ()


def test_another_shift_or_other_blocks_are_claims_too(load: Load, name: str) -> None:
    """Claims are the caller's to override; random weights cannot contradict a shift, and masks make the blocks."""
    claimed = not FAMILIES_UNDER_TEST[name].logits_shift
    traits = measure(load(logits_shift=claimed, attention_block_length=8))
    assert traits.logits_shift is claimed and traits.observed_shift is None
    assert traits.block_causal is True
