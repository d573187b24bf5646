# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What a trainer publishes, during and after the training: the same repositories as [`hf_rm.hub.push`]."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from .cards import CardFacts
from .publish import push_folder, stage

_REPORTED = (
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "backbone_learning_rate",
    "muon_learning_rate",
    "law",
    "horizon",
    "max_attempts",
    "pool_fraction",
    "num_generations",
    "temperature",
    "epsilon",
    "loss_steps",
    "decoding",
    "seed",
)


def push_trained(
    trainer: Any,
    commit_message: str | None,
    blocking: bool = True,
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    card: CardFacts | None = None,
) -> Any:
    """
    Save the trainer's model and publish it; every process calls this, the first one sends.

    Args:
        trainer ([`StagedCheckpoints`]): the trainer; `hub_model_id` and the other `hub_*` arguments are its own.
        commit_message (`str`, *optional*): of the commit.
        blocking (`bool`, defaults to `True`): wait for the upload.
        token, revision, private: in place of the trainer's arguments.
        card ([`CardFacts`], *optional*): what the card says. Without it the training's settings; a card that is
            already there then stays as it is.

    Returns:
        The `CommitInfo`, or with `blocking=False` a future of it; None on the other processes.
    """
    args = trainer.args
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    if trainer.hub_model_id is None:
        trainer.init_hf_repo(token=token, private=private)
    trainer.save_model(_internal_call=True)  # all processes: sharded weights are gathered
    if not trainer.is_world_process_zero():
        return None
    trainer._finish_current_push()
    where = {"token": token or args.hub_token, "revision": revision or args.hub_revision}
    send = _staged(trainer, args.output_dir, card, commit_message=commit_message, **where)
    return send() if blocking else HfApi().run_as_future(send)


def push_checkpoint(trainer: Any, folder: str | Path) -> None:
    """Publish a checkpoint's weights in the background, with `hub_strategy="every_save"`."""
    args = trainer.args
    if not trainer.is_world_process_zero() or args.hub_strategy != HubStrategy.EVERY_SAVE:
        return
    waiting = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
    if waiting and not args.hub_always_push:
        return
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    message = f"Training in progress, step {trainer.state.global_step}"
    where = {"token": args.hub_token, "revision": args.hub_revision}
    job = HfApi().run_as_future(_staged(trainer, folder, None, commit_message=message, **where))
    if waiting:
        trainer.push_in_progress.jobs.append(job)
    else:
        trainer.push_in_progress = PushInProgress([job])


def _staged(trainer: Any, weights: str | Path, card: CardFacts | None, **push_kwargs: Any) -> Any:
    """Stage now, while the saved weights are there, and return the call that sends them."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    folder = tempfile.mkdtemp()
    try:
        facts = card or CardFacts(training=_describe(trainer.args))
        stage(model, folder, trainer.hub_model_id, tokenizer=trainer.processing_class, card=facts, weights=weights)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return partial(_send_and_remove, folder, trainer.hub_model_id, keep_card=card is None, **push_kwargs)


def _send_and_remove(folder: str, repo_id: str, **push_kwargs: Any) -> Any:
    try:
        return push_folder(folder, repo_id, **push_kwargs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _describe(args: Any) -> str:
    values = {name: getattr(args, name) for name in _REPORTED if hasattr(args, name)}
    lines = [f"* `{name}`: {value}" for name, value in values.items() if value is not None and value != -1]
    return "\n".join(["Trained with hf_rm:", "", *lines])
