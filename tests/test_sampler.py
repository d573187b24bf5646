"""What the sampler reads off the scores, against the plain form."""

import pytest
import torch

from hf_rm.generation_sampler_rm import log_partition, most_probable


@pytest.mark.parametrize("vocab_size", [1, 7, 16, 17, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_most_probable_token_is_the_first_of_equals(vocab_size: int, dtype: torch.dtype) -> None:
    drawn = torch.randint(0, 4, (3, 50, vocab_size), generator=torch.Generator().manual_seed(vocab_size))
    scores = drawn.to(dtype).masked_fill(drawn == 1, -torch.inf)
    value, index = most_probable(scores, part=16)
    first = (scores == scores.amax(-1, keepdim=True)).int().argmax(-1)
    assert torch.equal(index, first)
    assert torch.equal(value, scores.amax(-1))


def test_scores_that_are_a_view_are_read_alike() -> None:
    scores = torch.randn(2, 90, 40, generator=torch.Generator().manual_seed(0))[:, 5:60:2]
    assert torch.equal(most_probable(scores, part=16)[1], scores.argmax(-1))
    torch.testing.assert_close(log_partition(scores), scores.logsumexp(-1))
