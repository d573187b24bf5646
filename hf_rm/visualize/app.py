# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
A page for trying a model in the browser: a draft or a prompt goes in, the replay of what becomes of it comes out.

    python -m hf_rm.visualize.app model_cards/rm-sudoku

Needs gradio (``pip install hf-rm[app]``), imported when the page is built.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Sequence
from typing import Any

from .html import render_html
from .replay import Replay

BOARD = "534678912672195348198342567859761423426853791713924856961537284287419635345286171"
_OWN = "as it was saved"


def replay_page(model: Any, tokenizer: Any, text: str, new_tokens: int = 64, preset: str | None = None) -> str:
    """
    Decode a text and give the page that plays it.

    Args:
        model ([`RMForMaskedDiffusion`]): one whose generation config says `editable="all"` revises the whole text;
            any other fills the masks in it, and a canvas behind it.
        tokenizer: the model's.
        text (`str`): a draft, a prompt, or a board of 81 characters.
        new_tokens (`int`): length of the canvas behind a prompt; 0 for none.
        preset (`str`, *optional*): decoding by name; by default as it was saved with the model.

    Returns:
        `str`: a whole HTML document, see [`render_html`].

    Raises:
        ValueError: for an empty text, one that the tokenizer has no tokens for, and settings that cannot work.
    """
    text = text.strip()
    if not text:
        raise ValueError("The text is empty: write a draft, a prompt or a board.")
    try:
        ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
    except Exception as error:  # the tokenizers library raises nothing more special
        raise ValueError(
            f"The tokenizer cannot read this text ({error}): use the characters that it knows."
        ) from error
    whole = model.generation_config.editable == "all"
    settings: dict[str, Any] = {} if preset is None else {"preset": preset}
    if not whole and new_tokens:
        settings["max_new_tokens"] = new_tokens
    output = model.generate_reflective(ids, output_trajectory=True, **settings)
    given, steps, length = ids.shape[1], int(output.num_steps[0]), output.sequences.shape[1]
    mask = model.config.mask_token_id
    replay = Replay.from_trajectory(
        output.trajectory.states[:, 0],
        output.trajectory.actions[:, 0],
        mask_token_id=mask,
        decode=tokenizer,
        editable=[whole or at >= given or int(ids[0, at]) == mask for at in range(length)],
        num_steps=steps,
        layout="grid" if length == 81 and model.config.position_groups is not None else "text",
        title="What the model did",
        metadata={"steps": str(steps), "ended by": str(output.stop_reason[0])},
    )
    return render_html(replay)


def build_app(name: str) -> Any:
    """
    The page for a model, a `gradio.Blocks`: `launch()` serves it.

    Args:
        name (`str`): a folder or Hub name, of a saved wrapper or of a backbone, with a tokenizer in it.

    Raises:
        ImportError: without gradio.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError('The page is built with gradio: pip install "hf-rm[app]"') from error
    from transformers import AutoConfig, AutoTokenizer

    from ..configuration_rm import RMConfig
    from ..generation_config_rm import PRESETS
    from ..modeling_rm import RMForMaskedDiffusion

    saved = isinstance(AutoConfig.from_pretrained(name), RMConfig)
    model = RMForMaskedDiffusion.from_pretrained(name) if saved else RMForMaskedDiffusion.from_backbone(name)
    model, tokenizer = model.eval(), AutoTokenizer.from_pretrained(name)
    whole = model.generation_config.editable == "all"

    def show(text: str, new_tokens: float, preset: str) -> str:
        try:
            page = replay_page(model, tokenizer, text, int(new_tokens), None if preset == _OWN else preset)
        except ValueError as error:
            raise gradio.Error(str(error)) from error
        # A frame of its own: the page brings its style, its script and the policy that admits no others.
        return f'<iframe srcdoc="{html.escape(page)}" style="width: 100%; height: 52rem; border: 0"></iframe>'

    with gradio.Blocks(title=f"{name}: Reflective Masking") as app:
        gradio.Markdown(f"# {name}\n\n{'Revises a draft.' if whole else 'Writes on from a prompt.'}")
        text = gradio.Textbox(BOARD if whole else "", label="Draft" if whole else "Prompt", lines=3)
        with gradio.Row():
            tokens = gradio.Slider(0, 512, value=64, step=1, label="New tokens", visible=not whole)
            preset = gradio.Dropdown([_OWN, *PRESETS], value=_OWN, label="Decoding")
        button = gradio.Button("Decode", variant="primary")
        button.click(show, [text, tokens, preset], gradio.HTML())
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page on this machine."""
    parser = argparse.ArgumentParser(prog="python -m hf_rm.visualize.app", description=build_app.__doc__)
    parser.add_argument("name", help="folder or Hub name of a model with a tokenizer")
    parser.add_argument("--port", type=int, help="of the page; by default the first free one from 7860")
    options = parser.parse_args(arguments)
    build_app(options.name).launch(server_port=options.port)


if __name__ == "__main__":
    main()
