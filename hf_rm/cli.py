# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The `hf-rm` command: a thin layer over the functions of the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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
