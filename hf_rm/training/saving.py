# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""How every trainer of this package saves, resumes and publishes: whole checkpoints, repositories that load."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer_utils import HubStrategy, get_last_checkpoint, rotate_checkpoints

from ..hub.publish import check_base
from ..hub.trained import push_checkpoint, push_trained
from .checkpoints import (
    STAGING,
    check_checkpoint,
    list_files,
    load_whole_weights,
    publish_folder,
    replace_pickled_arguments,
)

# What it is mixed in before: a Trainer, whichever that is.
_Trainer: Any = object


class StagedCheckpoints(_Trainer):
    """
    Mixed in before `Trainer` or a subclass of it.

    Checkpoints are written to a staging folder that is renamed when it is whole, and leave the pickled arguments out;
    what is published is laid out by `hf_rm.hub`.
    """

    _staging = False

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; but a checkpoint that is not whole is refused before anything of it is read."""
        folder: Any = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if folder:
            # Where the weights are spread over processes, so is the optimizer, in files of other names.
            spread = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
            needed = () if spread else ("optimizer.pt", "scheduler.pt", "rng_state*.pth")
            check_checkpoint(folder, ("trainer_state.json", *needed))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As in transformers; but whole weights are read as `from_pretrained` reads them, and none may be missing."""
        if not load_whole_weights(resume_from_checkpoint, self.model if model is None else model, self.accelerator):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not load_whole_weights(self.state.best_model_checkpoint, self.model, self.accelerator):
            super()._load_best_model()

    def extra_state(self) -> dict[str, Tensor]:
        """Tensors of this process that a resumed run needs besides model, optimizer and random states."""
        return {}

    def load_extra_state(self, tensors: dict[str, Tensor]) -> None:
        """Undo [`extra_state`]; called where any process has saved some."""

    def _extra_state_file(self, folder: str | Path) -> Path:
        return Path(folder) / f"extra_state_{self.args.process_index}.safetensors"

    def _get_output_dir(self, trial: Any) -> str:
        final = super()._get_output_dir(trial)
        return str(Path(final) / STAGING) if self._staging else final

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint beside its place, and rename it when all processes are done: a kill leaves no half."""
        run_folder = Path(self._get_output_dir(trial))
        staged = run_folder / STAGING / f"checkpoint-{self.state.global_step}"
        final = run_folder / staged.name
        if self.args.should_save:
            shutil.rmtree(run_folder / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        tensors = self.extra_state()
        if tensors:
            save_file(tensors, self._extra_state_file(staged))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if self.state.best_model_checkpoint == str(staged):
                self.state.best_model_checkpoint = str(final)
                self.state.save_to_json(str(staged / "trainer_state.json"))
            list_files(staged)
            publish_folder(staged, final)
            shutil.rmtree(run_folder / STAGING, ignore_errors=True)
            rotate_checkpoints(
                output_dir=str(run_folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    # Hub

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        check_base(self.model, token=token or self.args.hub_token)  # now, not after the training
        super().init_hf_repo(token=token, private=private)

    def push_to_hub(self, commit_message: str | None = "End of training", **kwargs: Any) -> Any:
        """As in transformers, but laid out by `hf_rm.hub.push`; arguments as for `hf_rm.hub.trained.push_trained`."""
        return push_trained(self, commit_message, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._staging:  # a staged folder is about to be renamed: `_save_checkpoint` pushes it afterwards
            push_checkpoint(self, checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            replace_pickled_arguments(self.args, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and any(Path(checkpoint).glob("extra_state_*.safetensors")):
            own = self._extra_state_file(checkpoint)
            self.load_extra_state(load_file(own) if own.exists() else {})


def refuse_pickled_states(args: Any) -> None:
    """Raise a ValueError for arguments under which optimizer and random states, pickles, would be uploaded."""
    if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"`hub_strategy` is {args.hub_strategy.value!r}, which uploads optimizer and random states, and those "
            'are pickles: pass "every_save" (weights only) or "end".'
        )
