# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Publishing: a folder is staged whole, checked, and sent to the Hub as one commit."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

from ..adapters_rm import base_of
from ..generation_config_rm import ReflectiveGenerationConfig
from .cards import CardFacts, write_model_card
from .layout import has_adapter, is_local, refuse_pickles, save_adapter_for_hub, save_for_hub, unwrap


def push(
    model: Any,
    repo_id: str,
    *,
    tokenizer: Any = None,
    card: CardFacts | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
    weights: str | Path | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
) -> CommitInfo:
    """
    Publish a wrapper, or its adapter when it has one, with code, settings, card and evaluation results: one commit.

    Args:
        model ([`RMForMaskedDiffusion`] or `PeftModel`): what is published.
        repo_id (`str`): `"user/name"`; created when it does not exist.
        tokenizer (*optional*): published beside it.
        card ([`CardFacts`], *optional*): what the card says. Without it a card that is already there stays as it is.
        base_model (`str`, *optional*), base_revision (`str`, *optional*): Hub name and commit of an adapter's base,
            where it is not what the model was loaded from.
        weights (`str` or `Path`, *optional*): a folder with the weights as saved; the model's own otherwise.
        private (`bool`, *optional*): whether a new repository is private.
        token (`str`, *optional*): a token that may write; the one of `hf auth login` by default.
        revision (`str`, *optional*): the branch, created when it does not exist.
        create_pr (`bool`): open a pull request instead of committing.
        commit_message (`str`, *optional*), commit_description (`str`, *optional*): of the commit.
        max_shard_size (`int` or `str`): of a full model's files.
        tags (`list[str]`, *optional*): further tags for the card.

    Returns:
        `CommitInfo`: the commit, as huggingface_hub gives it.

    Raises:
        ValueError: for an adapter whose base others cannot fetch, before anything is saved or sent.
        OSError: when the Hub refuses.
    """
    check_base(model, base_model, token)
    with tempfile.TemporaryDirectory() as staged:
        stage(
            model,
            staged,
            repo_id,
            tokenizer=tokenizer,
            card=replace(card or CardFacts(), tags=[*(card or CardFacts()).tags, *(tags or ())]),
            base_model=base_model,
            base_revision=base_revision,
            weights=weights,
            max_shard_size=max_shard_size,
        )
        return push_folder(
            staged,
            repo_id,
            keep_card=card is None,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message or f"Upload {'adapter' if has_adapter(model) else 'model'} with hf_rm",
            commit_description=commit_description,
        )


def stage(
    model: Any,
    folder: str | Path,
    repo_id: str,
    *,
    tokenizer: Any = None,
    card: CardFacts | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
    weights: str | Path | None = None,
    max_shard_size: int | str = "50GB",
) -> Path:
    """Write into `folder` all that [`push`] publishes; arguments as there."""
    adapter = has_adapter(model)
    if adapter:
        base = {"base_model": base_model, "base_revision": base_revision}
        save_adapter_for_hub(model, folder, tokenizer, weights=weights, **base)
    else:
        save_for_hub(unwrap(model), folder, tokenizer, weights=weights, max_shard_size=max_shard_size)
    _forget_paths(Path(folder) / "config.json")
    config = type(unwrap(model).config).from_pretrained(folder)
    settings = ReflectiveGenerationConfig.from_pretrained(folder)
    write_model_card(folder, repo_id, config, settings, card or CardFacts(), adapter=adapter)
    return Path(folder)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    keep_card: bool = False,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload with hf_rm",
    commit_description: str | None = None,
) -> CommitInfo:
    """
    Publish a folder that is laid out as a repository ([`save_for_hub`], [`save_adapter_for_hub`]), as one commit.

    Weights and adapters that the repository holds and the folder does not are deleted by the same commit: a model with
    the adapter of an earlier push beside it would load as that adapter.

    Args:
        folder (`str` or `Path`): the staged repository.
        keep_card (`bool`): leave a `README.md` alone that is already there.
        repo_id, private, token, revision, create_pr, commit_message, commit_description: as for [`push`].

    Returns:
        `CommitInfo`: the commit.

    Raises:
        ValueError: when the folder holds pickles, or the card's metadata is not valid.
        OSError: when the Hub refuses.
    """
    refuse_pickles(folder)
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        files = {p.relative_to(folder).as_posix(): p for p in sorted(Path(folder).rglob("*")) if p.is_file()}
        there = _files_there(api, repo_id, None if create_pr else revision)
        if keep_card and "README.md" in there:
            files.pop("README.md", None)
        stale = [name for name in there if name not in files and _is_weights(name)]
        # upload_folder would cut a large folder into several commits.
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(path_in_repo=name) for name in stale),
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
            ],
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    except HfHubHTTPError as error:
        raise OSError(_refusal(repo_id, error)) from error


def _forget_paths(path: Path) -> None:
    """Take folders of this machine out of a config that is about to be published."""
    values = json.loads(path.read_text())
    values["text_config"].pop("_name_or_path", None)
    if values["backbone_name"] and is_local(values["backbone_name"]):
        values["backbone_name"] = values["backbone_revision"] = None
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def check_base(model: Any, base_model: str | None = None, token: str | bool | None = None) -> None:
    """
    Refuse an adapter without a base that others can fetch: it would be of no use to them.

    Args:
        model ([`RMForMaskedDiffusion`] or `PeftModel`): a model without an adapter passes.
        base_model (`str`, *optional*): the base's Hub name, where it is not what the model was loaded from.
        token (`str`, *optional*): to look for the base with.

    Raises:
        ValueError: for a base that is unknown, a path of this machine, or not on the Hub.
    """
    if not has_adapter(model):
        return
    base = base_model or base_of(unwrap(model))[0]
    if not base:
        raise ValueError("The model's base is unknown (it was built in memory): push it and pass base_model=.")
    if is_local(base):
        raise ValueError(
            f"The adapter's base is {base!r}, a path of this machine: nobody else could load it. Push the base first "
            "(hf_rm.hub.push), or pass base_model= with the Hub name of the same weights."
        )
    try:
        exists = HfApi(token=token).repo_exists(base)
    except HfHubHTTPError as error:
        raise OSError(_refusal(base, error)) from error
    if not exists:
        raise ValueError(
            f"The adapter's base {base!r} is not on the Hub, or this token may not read it: push it first, or pass "
            "base_model= with the Hub name of the same weights."
        )


def _files_there(api: HfApi, repo_id: str, revision: str | None) -> list[str]:
    try:
        return api.list_repo_files(repo_id, revision=revision)
    except (EntryNotFoundError, RevisionNotFoundError):  # an empty repository has neither files nor a branch
        return []


def _is_weights(name: str) -> bool:
    return name.startswith("adapter/") or (name.startswith("model") and ".safetensors" in name)


def _refusal(repo_id: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code if error.response is not None else None
    if status in (401, 403):
        return (
            f"The Hub refused access to {repo_id!r} ({status}): pass token= with write permission, or run "
            "`hf auth login`."
        )
    return f"The Hub could not take {repo_id!r} ({status}): {error}"
