"""All weights of a model of every family, taken up again from a checkpoint: published names are not ours to ignore."""

from pathlib import Path

import pytest
import torch
from tiny_families import FAMILIES_UNDER_TEST, write

from hf_rm import RMForMaskedDiffusion, RMTrainer, RMTrainingArguments


def rows() -> list[dict]:
    """Ids from 6 on, which are no family's mask."""
    return [{"input_ids": 6 + (torch.arange(8) * (i % 5 + 1) + i) % 24, "idx": i} for i in range(32)]


def trained(name: str, folder: Path, out: Path, resume: Path | None = None, **settings) -> RMTrainer:
    mask_token_id = FAMILIES_UNDER_TEST[name].mask_token_id
    backbone = folder / name if (folder / name).exists() else write(name, folder / name)
    model = RMForMaskedDiffusion.from_backbone(str(backbone), mask_token_id=mask_token_id, probe=False)
    defaults = {"max_steps": 4, "save_steps": 2, "learning_rate": 0.01, "per_device_train_batch_size": 4}
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = RMTrainingArguments(str(out), **{**defaults, **quiet, **settings})
    trainer = RMTrainer(model, args, train_dataset=rows(), eval_dataset=rows()[:4])
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


@pytest.mark.parametrize("name", list(FAMILIES_UNDER_TEST))
def test_it_ends_bit_for_bit_where_the_whole_run_does(name, tmp_path):
    whole = trained(name, tmp_path, tmp_path / "whole").model.state_dict()
    resumed = trained(name, tmp_path, tmp_path / "resumed", tmp_path / "whole" / "checkpoint-2").model.state_dict()
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


def test_the_best_models_weights_come_back(tmp_path, monkeypatch):
    """The second of four checkpoints is told to be the best: what arithmetic makes of a loss differs by machine."""
    losses = iter([3.0, 1.0, 2.0, 4.0])
    evaluate = RMTrainer.evaluate

    def told(self, *args, **kwargs):
        evaluate(self, *args, **kwargs)
        metrics = {"eval_loss": next(losses)}
        self.log(metrics)
        return metrics

    monkeypatch.setattr(RMTrainer, "evaluate", told)
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    trainer = trained("llada", tmp_path, tmp_path / "out", metric_for_best_model="loss", **settings)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-2"
    last = RMForMaskedDiffusion.from_pretrained(tmp_path / "out" / "checkpoint-4").state_dict()
    assert any(not torch.equal(value, last[key]) for key, value in trainer.model.state_dict().items())
    expected = RMForMaskedDiffusion.from_pretrained(best).state_dict()
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_weights_that_are_not_the_models_are_refused(tmp_path):
    trained("llada", tmp_path, tmp_path / "llada-run", max_steps=2)
    with pytest.raises(RuntimeError, match="Missing key"):
        trained("bert", tmp_path, tmp_path / "other", tmp_path / "llada-run" / "checkpoint-2")
