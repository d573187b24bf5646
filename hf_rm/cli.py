# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The `hf-rm` command: a thin layer over the functions of the package."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .configuration_rm import RMConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Args:
        arguments (sequence of `str`, *optional*): by default those of the process.

    Returns:
        `int`: the exit status: 0, or 1 when something is wrong with what was named.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"hf-rm {options.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-rm", description="Reflective Masking for mask diffusion models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_probe(commands)
    _add_convert(commands)
    return parser


def _add_probe(commands: Any) -> None:
    text = "run a backbone on a few tokens and print what it is; exit status 1 when a claim about it is false"
    probe = commands.add_parser("probe", help=text, description=text)
    probe.add_argument("name", help="Hub name or folder of a backbone or of a saved wrapper")
    probe.add_argument("--mask_token_id", type=int, help="id of the mask, where neither config nor tokenizer has it")
    probe.add_argument("--logits_shift", action=argparse.BooleanOptionalAction, help="override the family's claim")
    probe.add_argument("--attention_block_length", type=int, help="override the family's block-causal attention")
    probe.add_argument("--dtype", default="auto", help="dtype to load it in (default: as it was saved)")
    probe.add_argument("--device_map", help="passed to from_pretrained, for example auto")
    probe.add_argument("--revision", help="branch, tag or commit on the Hub")
    probe.add_argument("--trust_remote_code", action="store_true", help="run code that the repository brings")
    probe.set_defaults(run=_probe)


def _probe(options: argparse.Namespace) -> int:
    from .backbones import measure

    traits = measure(_load(options))
    table = Table(show_header=False, box=None)
    for name, value in traits.table():
        table.add_row(f"[bold]{name}[/bold]", value)
    console = Console()
    console.print(table)
    for problem in traits.problems:
        console.print(f"[red]false claim:[/red] {problem}")
    return int(bool(traits.problems))


def _load(options: argparse.Namespace) -> Any:
    """The wrapper that the options name, or one around the backbone that they name."""
    from transformers import AutoConfig

    from .modeling_rm import RMForMaskedDiffusion

    given = {name: getattr(options, name) for name in ("dtype", "device_map", "revision", "trust_remote_code")}
    loading = {name: value for name, value in given.items() if value}
    where = {name: loading[name] for name in ("revision", "trust_remote_code") if name in loading}
    if isinstance(AutoConfig.from_pretrained(options.name, **where), RMConfig):
        return RMForMaskedDiffusion.from_pretrained(options.name, **loading)
    claims = {name: getattr(options, name) for name in ("logits_shift", "attention_block_length")}
    return RMForMaskedDiffusion.from_backbone(
        options.name,
        mask_token_id=options.mask_token_id,
        probe=False,
        backbone_kwargs=loading,
        **{name: value for name, value in claims.items() if value is not None},
    )


def _add_convert(commands: Any) -> None:
    text = "save a bidirectional copy of a causal language model, with a mask token, to be trained by masked diffusion"
    convert = commands.add_parser("convert", help=text, description=text)
    convert.add_argument("name", help="Hub name or folder of a causal model with full attention, such as a SmolLM2")
    convert.add_argument("folder", help="where to put the copy and its tokenizer; must not exist")
    convert.add_argument("--mask_token", help="token that becomes the mask; by default a spare one, or a new row")
    convert.add_argument("--dtype", default="auto", help="dtype to save it in (default: as it was saved)")
    convert.add_argument("--revision", help="branch, tag or commit on the Hub")
    convert.add_argument("--gguf_file", help="name of a GGUF file there, in place of safetensors")
    convert.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    """A folder that is whole or not there: the copy is written beside it and renamed."""
    from .backbones import from_autoregressive

    folder = Path(options.folder)
    if folder.exists():
        raise ValueError(f"`folder` is {folder}, which exists: name a new one, or delete it.")
    given = {name: getattr(options, name) for name in ("dtype", "revision", "gguf_file")}
    loading = {name: value for name, value in given.items() if value}
    model, tokenizer = from_autoregressive(options.name, mask_token=options.mask_token, **loading)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        staged.chmod(0o755)  # mkdtemp's folders are their owner's alone
        staged.replace(folder)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    token = tokenizer.convert_ids_to_tokens(model.config.mask_token_id)
    print(f"{folder}: {model.num_parameters():,} parameters, mask token {token} ({model.config.mask_token_id})")
    return 0
