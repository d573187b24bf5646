"""The loss without (B, N, V): equal to the plain form, and no more than a chunk of scores at a time."""

import copy
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_training import tiny_model, tiny_rows
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
)

from hf_rm import RMForMaskedDiffusion, RMTrainer, RMTrainingArguments, heads_rm
from hf_rm.training import MaskedSFTArguments, MaskedSFTTrainer, base, default_lora_config
from hf_rm.training.head_gradient import accumulating_head

VOCABULARY = 37
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
ALL = {"is_causal": False}
BERT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
HEADS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, **ALL)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, **ALL, tie_word_embeddings=True)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SHAPE, **BERT)),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**SHAPE, **BERT, embedding_size=8)),
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**SHAPE)),
}
# Rows of unequal length with a prompt: padding and prompt carry no label.
ROWS = [
    {
        "input_ids": [2 + (3 * i + j) % (VOCABULARY - 2) for j in range(6 + i)],
        "editable_mask": [j > 1 for j in range(6 + i)],
        "idx": i,
    }
    for i in range(4)
]


def wrap(name: str = "llama", **config) -> RMForMaskedDiffusion:
    torch.manual_seed(0)
    return RMForMaskedDiffusion.from_backbone(HEADS[name]().eval(), mask_token_id=1, probe=False, **config)


def adapted(model: RMForMaskedDiffusion, which: str) -> RMForMaskedDiffusion:
    """With an adapter whose weights are not zero, so that every part of it has a gradient."""
    config = default_lora_config(model, r=2)
    if which == "lora on the head":
        config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    adapter = get_peft_model(model, config)
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapter


def arguments(folder, kind=RMTrainingArguments, **settings):
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 0.01,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "max_corruption_rate": 0.9,
    }
    if kind is MaskedSFTArguments:
        del defaults["max_corruption_rate"]
    return kind(str(folder), **{**defaults, **settings})


def one_step(folder, model, chunk: int, **settings):
    """Loss, gradients and logged parts of one training step's forward and backward pass."""
    trainer = RMTrainer(copy.deepcopy(model), arguments(folder, loss_chunk_rows=chunk, **settings), train_dataset=ROWS)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(ROWS))
    loss.backward()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}
    return loss.item(), gradients, trainer.loss_parts.pop(), trainer


def assert_equal_steps(plain, chunked) -> None:
    assert chunked[0] == pytest.approx(plain[0], rel=1e-6, abs=1e-6)
    assert chunked[2] == pytest.approx(plain[2], rel=1e-6, abs=1e-6)
    assert plain[1].keys() == chunked[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in plain[1].values() if gradient is not None)
    assert largest > 1e-3
    for name, gradient in plain[1].items():
        if gradient is None:
            assert chunked[1][name] is None, name
        else:
            assert (gradient - chunked[1][name]).abs().max() <= 1e-6 * max(1, largest), name


@pytest.mark.parametrize("name", HEADS)
def test_heads_give_the_plain_loss_and_gradients(tmp_path, name):
    model = wrap(name)
    assert heads_rm._head(model.model) is not None
    assert_equal_steps(one_step(tmp_path, model, 0), one_step(tmp_path, model, 5))


@pytest.mark.parametrize("clip", ["reported", "hard", "none"])
@pytest.mark.parametrize("chunk", [1, 1000])
def test_clips_and_weights(tmp_path, clip, chunk):
    model = wrap()
    with torch.no_grad():
        model.get_output_embeddings().weight[1] = 40 * model.get_output_embeddings().weight[1]  # far beyond the clip
    settings = {"loss_clip": clip, "edit_weight": 3.0}
    plain = one_step(tmp_path, model, 0, **settings)
    assert_equal_steps(plain, one_step(tmp_path, model, chunk, **settings))


def test_a_shifted_backbone(tmp_path):
    model = wrap(logits_shift=True)
    assert_equal_steps(one_step(tmp_path, model, 0), one_step(tmp_path, model, 4))


def test_an_unknown_head_computes_all_scores(tmp_path, monkeypatch):
    model = wrap(logits_shift=True)
    plain = one_step(tmp_path, model, 0)
    monkeypatch.setattr(heads_rm, "_HEADS", ())
    assert_equal_steps(plain, one_step(tmp_path, model, 4))


@pytest.mark.parametrize("which", ["token rows", "lora on the head"])
@pytest.mark.parametrize("name", ["llama", "llama, tied"])
def test_adapters(tmp_path, which, name):
    model = adapted(wrap(name), which)
    plain = one_step(tmp_path, model, 0)
    moved = [name for name, gradient in plain[1].items() if gradient.abs().max() > 0]
    assert any("trainable_tokens_delta" in n or "lm_head.lora_B" in n for n in moved)
    assert_equal_steps(plain, one_step(tmp_path, model, 5))


def test_gradient_checkpointing(tmp_path):
    model = wrap()
    chunked = one_step(tmp_path, model, 5)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal_steps(one_step(tmp_path, model, 0), chunked)
    assert_equal_steps(chunked, one_step(tmp_path, model, 5))


def test_16_bit_autocast(tmp_path):
    model = wrap()
    plain, chunked = (one_step(tmp_path, model, chunk, bf16=True) for chunk in (0, 5))
    assert chunked[0] == pytest.approx(plain[0], rel=1e-2)


def test_extra_rows_for_processes_that_share_the_weights_change_nothing(tmp_path, monkeypatch):
    model = wrap()
    plain = one_step(tmp_path, model, 0)
    monkeypatch.setattr(RMTrainer, "_most", lambda self, number: number + 3)  # some other process makes 3 calls more
    calls = []
    model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    assert_equal_steps(plain, one_step(tmp_path, model, 10))
    labels = sum(sum(row["editable_mask"]) for row in ROWS)
    assert len(calls) == 2 * (-(-labels // 10) + 3), "each chunk once forward and once again"


def test_the_pool_moves_alike(tmp_path):
    settings = {"max_steps": 5, "pool_fraction": 0.5, "per_device_train_batch_size": 8, "pool_reveal_threshold": 0.5}
    trainers = []
    for chunk in (0, 7):
        model = tiny_model(suppressed_token_ids=[3])
        args = arguments(tmp_path, loss_chunk_rows=chunk, **settings)
        trainers.append(RMTrainer(model, args, train_dataset=tiny_rows()))
        trainers[-1].train()
    plain, chunked = trainers
    assert plain.pools[0].rows.age.max() > 1
    for name in ("ids", "target", "age", "editable"):
        assert torch.equal(getattr(plain.pools[0].rows, name), getattr(chunked.pools[0].rows, name)), name
    for (name, one), other in zip(plain.model.state_dict().items(), chunked.model.state_dict().values(), strict=True):
        assert (one - other).abs().max() < 1e-5, name
    for one, other in zip(plain.state.log_history[:-1], chunked.state.log_history[:-1], strict=True):
        for key in ("loss", "loss_mask", "accuracy_keep", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-4), key


def test_accumulation_1x8_equals_8x1_plain(tmp_path):
    states = []
    for batch, accumulation, chunk in ((8, 1, 0), (1, 8, 3)):
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        args = arguments(tmp_path, loss_chunk_rows=chunk, **settings)
        trainer = RMTrainer(tiny_model(), args, train_dataset=tiny_rows())
        trainer.train()
        states.append(trainer.model.state_dict())
    for name in states[0]:
        assert (states[0][name] - states[1][name]).abs().max() < 1e-5, name


def test_evaluation_reads_in_chunks_and_gives_logits_where_they_are_wanted(tmp_path):
    model = tiny_model()
    shapes = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    args = arguments(tmp_path, loss_chunk_rows=10, per_device_eval_batch_size=8)
    trainer = RMTrainer(model, args, eval_dataset=tiny_rows(8))
    loss = trainer.evaluate()["eval_loss"]
    assert {shape[0] for shape in shapes} == {10, 4}
    predicted = trainer.predict(trainer.eval_dataset)
    assert predicted.predictions.shape == (8, 8, 12)
    assert predicted.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)


class TestVanillaSFT:
    def step(self, folder, model, chunk, batch=None):
        args = arguments(folder, MaskedSFTArguments, loss_chunk_rows=chunk)
        trainer = MaskedSFTTrainer(copy.deepcopy(model), args, train_dataset=ROWS)
        batch = trainer.data_collator(ROWS) if batch is None else batch
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return loss.item(), {name: p.grad for name, p in trainer.model.named_parameters()}, {}

    def test_the_plain_loss_and_gradients(self, tmp_path):
        model = wrap()
        assert_equal_steps(self.step(tmp_path, model, 0), self.step(tmp_path, model, 4))

    def test_a_batch_without_a_mask_has_gradients_of_zero(self, tmp_path):
        model = wrap()
        batch = MaskedSFTTrainer(model, arguments(tmp_path, MaskedSFTArguments)).data_collator(ROWS)
        batch["labels"] = torch.full_like(batch["labels"], -100)
        loss, gradients, _ = self.step(tmp_path, model, 4, batch)
        assert loss == 0
        assert all(gradient is not None and gradient.abs().max() == 0 for gradient in gradients.values())


class LargestScores(TorchDispatchMode):
    """Remembers the most rows of scores that any tensor held: all whose last axis is the vocabulary."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.most = width, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and self.width in leaf.shape and leaf.numel() != self.width * 16:
                self.most = max(self.most, leaf.numel() // self.width)  # the head's own weight is (V, 16)
        return result


@pytest.mark.parametrize(("chunk", "most"), [(5, 5), (0, 36)])
def test_no_tensor_holds_more_than_a_chunk_of_scores(tmp_path, chunk, most):
    trainer = RMTrainer(wrap(), arguments(tmp_path, loss_chunk_rows=chunk, pool_fraction=0.5), train_dataset=ROWS)
    batch = trainer.data_collator(ROWS)
    assert batch["labels"].numel() == 36
    trainer.model.train()
    with LargestScores(VOCABULARY) as scores:
        trainer.compute_loss(trainer.model, batch).backward()
    assert scores.most == most


def test_a_negative_chunk_is_refused(tmp_path):
    with pytest.raises(ValueError, match="loss_chunk_rows.*-1"):
        arguments(tmp_path, loss_chunk_rows=-1)


def test_a_reader_beside_labels_is_refused():
    model, ids = wrap(), torch.ones(1, 4, dtype=torch.long)
    reader = heads_rm.LogitsReader(torch.arange(4), lambda scores, part: (scores[:, 0],), 2)
    with pytest.raises(ValueError, match="logits_reader"):
        model(ids, labels=ids, logits_reader=reader)


class TestOneGradient:
    """What the trainers ask of [`accumulating_head`]."""

    @pytest.fixture
    def calls(self, monkeypatch):
        found = []

        def spy(head, in_place=False):
            run = accumulating_head(head, in_place)
            found.append((in_place, run is not head))
            return run

        monkeypatch.setattr(base, "accumulating_head", spy)
        return found

    def test_alone_it_adds_to_the_gradient_that_is_there(self, tmp_path, calls):
        one_step(tmp_path, wrap(), 5)
        assert calls == [(True, True)]

    def test_beside_other_processes_it_does_not(self, tmp_path, calls, monkeypatch):
        trainer = RMTrainer(wrap(), arguments(tmp_path, loss_chunk_rows=5), train_dataset=ROWS)
        trainer.accelerator.state.distributed_type = base.DistributedType.MULTI_CPU
        try:
            trainer.compute_loss(trainer.model, trainer.data_collator(ROWS)).backward()
        finally:
            trainer.accelerator.state.distributed_type = base.DistributedType.NO
        assert calls == [(False, True)]

    def test_weights_that_are_spread_are_left_to_their_modules(self, tmp_path, calls, monkeypatch):
        plain = one_step(tmp_path, wrap(), 0)
        monkeypatch.setattr(RMTrainer, "_weights_are_spread", lambda self: True)
        assert_equal_steps(plain, one_step(tmp_path, wrap(), 5))
        assert calls == []

    @pytest.mark.parametrize("name", ["llama", "llama, tied", "modernbert"])
    def test_a_second_batch_before_the_step(self, tmp_path, name, calls):
        """The gradients that it meets, for tied weights those of the embedding too, are those of the plain form."""
        found = []
        for chunk in (0, 5):
            args = arguments(tmp_path, loss_chunk_rows=chunk)
            trainer = RMTrainer(copy.deepcopy(wrap(name)), args, train_dataset=ROWS)
            trainer.model.train()
            for rows in (ROWS[:2], ROWS[2:]):
                trainer.compute_loss(trainer.model, trainer.data_collator(rows)).backward()
            found.append({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
        assert found[0].keys() == found[1].keys()
        largest = max(gradient.abs().max() for gradient in found[0].values())
        assert all((found[1][name] - found[0][name]).abs().max() <= 1e-6 * largest for name in found[0])
        assert calls == [(True, True)] * 2
