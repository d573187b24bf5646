# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Lumina-DiMOO for those who have its checkpoint: its sequences, its picture sizes, its image tokens, and editing by RM.

    [ padding ] <system> ... </system><user> the request
    BOI [ source tokens, a newline behind every row ] EOI </user>
    BOA BOI [ canvas tokens, a newline behind every row ] EOI EOA

The network is LLaDA's, which `RMForMaskedDiffusion.from_backbone` loads without remote code: it reads embeddings (with
their history) and an additive mask made of a bool one, so padding never turns it causal, and its scores keep the mask
token, which the stock sampler cuts off. Only image codes on the canvas are editable.

Texts are padded on the left: behind the padding a row is, position by position, the sequence without it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...families_rm import _read_config
from ...modeling_rm import RMForMaskedDiffusion
from .codebook import Grid, Image, check_images
from .edit import EditRun, edit_images

Ids = npt.NDArray[np.int64]

NEWLINE_ID, MASK_ID, PAD_ID = 126084, 126336, 126339
BOI_ID, EOI_ID, UNCONDITION_ID, BOA_ID, EOA_ID = 126349, 126350, 126351, 126354, 126355
FIRST_CODE, CODES = 126356, 8192
VOCAB_SIZE = FIRST_CODE + CODES
SYSTEM_PROMPT = "Generate an image applying the following editing instruction based on the original image."
SOURCE_DROPS = ("mask", "remove")
_WHERE = ("token", "cache_dir", "local_files_only")
_UNCONDITION, _END_OF_USER = "<uncondition>", "</user>"


def dimoo_prompt(instruction: str) -> str:
    """
    The prompt of an edit, in the words that the checkpoint was trained with.

    Example:
        >>> dimoo_prompt("remove the cat")[-36:]
        '</system><user>remove the cat</user>'
    """
    return f"<system>{SYSTEM_PROMPT}</system><user>{instruction}{_END_OF_USER}"


def crop_sizes(side: int = 512, multiple: int = 32, max_ratio: float = 4.0) -> list[tuple[int, int]]:
    """
    The (width, height) that pictures are cut to: about `side` x `side` pixels, multiples of `multiple`.

    A staircase along the hyperbola of equal areas: from the widest on, one more row where that still fits, else one
    column less.

    Raises:
        ValueError: for a side that is no multiple, or a ratio below 1.

    Example:
        >>> sizes = crop_sizes()
        >>> len(sizes), sizes[0], (512, 512) in sizes
        (49, (1024, 256), True)
    """
    if side < multiple or side % multiple or max_ratio < 1:
        raise ValueError(
            f"`side` is {side}, `multiple` {multiple}, `max_ratio` {max_ratio}: pass a multiple, and 1 or more."
        )
    budget, sizes = (side // multiple) ** 2, []
    columns, rows = budget, 1
    while columns:
        if max(columns, rows) <= max_ratio * min(columns, rows):
            sizes.append((columns * multiple, rows * multiple))
        if (rows + 1) * columns <= budget:
            rows += 1
        else:
            columns -= 1
    return sizes


def choose_crop(width: int, height: int, sizes: Sequence[tuple[int, int]] | None = None) -> tuple[int, int]:
    """
    The size of the table that keeps most of a picture; the wider one among equals.

    Example:
        >>> choose_crop(640, 427)
        (608, 416)
    """
    if min(width, height) < 1:
        raise ValueError(f"the picture is {width} x {height} pixels: pass one with pixels.")
    table = crop_sizes() if sizes is None else sizes

    def kept(size: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        across, down = size[0] / width, size[1] / height
        return min(across, down) / max(across, down), size

    return max(table, key=kept)


def shared_cut(pictures: Sequence[Any], size: tuple[int, int] | None = None, masks: Sequence[Any] = ()) -> list[Any]:
    """
    Cut pictures of one size (source and target of an edit) by one and the same crop, the centred one.

    Args:
        pictures (sequence of pillow pictures): of equal size; halved while that leaves enough, then resized to cover.
        size (`tuple[int, int]`, *optional*): (width, height) to cut to; by default the best of [`crop_sizes`].
        masks (sequence of pillow pictures): cut likewise, without new values in between.

    Returns:
        list of pictures, masks behind.

    Raises:
        ValueError: for pictures of different sizes.
    """
    from PIL import Image as pillow

    together = [*pictures, *masks]
    found = {picture.size for picture in together}
    if len(found) != 1:
        raise ValueError(f"the pictures have the sizes {sorted(found)}: pass a source and a target of one size.")
    width, height = found.pop()
    size = choose_crop(width, height) if size is None else size
    cut = []
    for i, picture in enumerate(together):
        smooth = i < len(pictures)
        while picture.width >= 2 * size[0] and picture.height >= 2 * size[1]:
            by = pillow.Resampling.BOX if smooth else pillow.Resampling.NEAREST
            picture = picture.resize((picture.width // 2, picture.height // 2), by)
        scale = max(size[0] / picture.width, size[1] / picture.height)
        cover = (max(size[0], round(picture.width * scale)), max(size[1], round(picture.height * scale)))
        picture = picture.resize(cover, pillow.Resampling.BICUBIC if smooth else pillow.Resampling.NEAREST)
        left, top = (cover[0] - size[0]) // 2, (cover[1] - size[1]) // 2
        cut.append(picture.crop((left, top, left + size[0], top + size[1])))
    return cut


@dataclass(frozen=True)
class DimooLayout:
    """
    Where everything stands in the sequences of pictures of one size.

    Args:
        tokenizer: the checkpoint's.
        rows, columns (`int`): of the token grid.
        text_length (`int`): slots for the prompt up to the request; longer ones are refused.
        source_drop (`str`, defaults to `"mask"`): how a sequence loses its source: `"mask"` puts masks in place of its
            codes, as training here drops it; `"remove"` hides the whole block with its borders, which is as if it were
            not there: what the published checkpoint's own sampler does.

    Raises:
        ValueError: for a tokenizer without DiMOO's special words, a layout without room, or another `source_drop`.
    """

    tokenizer: Any
    rows: int
    columns: int
    text_length: int
    source_drop: str = "mask"

    mask_token_id = MASK_ID
    pad_token_id = PAD_ID
    first_code = FIRST_CODE
    vocab_size = VOCAB_SIZE
    codes = CODES

    def __post_init__(self) -> None:
        found = self.tokenizer.convert_tokens_to_ids(_UNCONDITION)
        if found != UNCONDITION_ID:
            raise ValueError(
                f"`tokenizer` has {_UNCONDITION} at {found}, not {UNCONDITION_ID}: pass the tokenizer of Lumina-DiMOO."
            )
        if self.source_drop not in SOURCE_DROPS:
            raise ValueError(f"`source_drop` is {self.source_drop!r}: pass one of {', '.join(SOURCE_DROPS)}.")
        if min(self.rows, self.columns) < 1 or self.text_length < len(self.unconditional_text):
            raise ValueError(
                f"`rows`, `columns`, `text_length` are {self.rows}, {self.columns}, {self.text_length}: pass 1 or "
                f"more, and at least {len(self.unconditional_text)} slots for the text."
            )

    @classmethod
    def of(
        cls, tokenizer: Any, instructions: Sequence[str], rows: int, columns: int, source_drop: str = "mask"
    ) -> DimooLayout:
        """The layout whose text slots fit these instructions; what is no text is left to [`encode_text`] to refuse."""
        texts = (_UNCONDITION, *filter(_is_text, instructions))
        lengths = [len(tokenizer(dimoo_prompt(text))["input_ids"]) - 1 for text in texts]
        return cls(tokenizer, rows, columns, max(lengths), source_drop)

    @property
    def source(self) -> slice:
        """Positions of the source's rows, newlines among them."""
        return slice(self.text_length + 1, self.text_length + 1 + self.rows * (self.columns + 1))

    @property
    def canvas(self) -> slice:
        """Positions of the canvas's rows, newlines among them."""
        start = self.source.stop + 4  # EOI </user> BOA BOI
        return slice(start, start + self.rows * (self.columns + 1))

    @property
    def length(self) -> int:
        """Of a sequence."""
        return self.canvas.stop + 2  # EOI EOA

    @property
    def suppressed_token_ids(self) -> list[int]:
        """What a reveal must never write onto the canvas: everything but image codes and the mask."""
        return [token for token in range(FIRST_CODE) if token != MASK_ID]

    @cached_property
    def editable_mask(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: the canvas's codes, no newline, no border, no text."""
        mask = np.zeros(self.length, dtype=bool)
        mask[self.canvas] = self._is_code
        return mask

    @cached_property
    def unconditional_text(self) -> list[int]:
        """What stands in the text slots, behind the padding, when the instruction is dropped."""
        return self._prompt(_UNCONDITION)[0]

    def encode_text(self, instruction: str) -> list[int]:
        """
        The ids of a prompt up to the request's last, padded on the left.

        Raises:
            ValueError: for a request that is no text, is empty or too long.
        """
        if not _is_text(instruction):
            raise ValueError(f"`instruction` is {instruction!r}: pass a text, without lone surrogates.")
        if not instruction.strip():
            raise ValueError("`instruction` is empty: say what to edit.")
        ids, _ = self._prompt(instruction)
        if len(ids) > self.text_length:
            raise ValueError(
                f"`instruction` {instruction[:40]!r} makes {len(ids)} tokens for {self.text_length} slots: build the "
                "layout with `DimooLayout.of`."
            )
        return [PAD_ID] * (self.text_length - len(ids)) + ids

    def sequences(self, instructions: Sequence[str], source: Grid, canvas: Grid | None = None) -> Ids:
        """
        (B, N) ids; arguments as [`EditLayout.sequences`].

        Raises:
            ValueError: for grids of another shape or codes that do not exist.
        """
        canvas = source if canvas is None else canvas
        for name, grid in (("source", source), ("canvas", canvas)):
            if grid.shape != (len(instructions), self.rows, self.columns):
                raise ValueError(
                    f"`{name}` has shape {grid.shape}: pass {(len(instructions), self.rows, self.columns)}, one grid "
                    "an instruction."
                )
            if grid.size and not 0 <= grid.min() <= grid.max() < CODES:
                raise ValueError(f"`{name}` holds codes {grid.min()} to {grid.max()}: there are 0 to {CODES - 1}.")
        ids = np.empty((len(instructions), self.length), dtype=np.int64)
        ids[:, : self.text_length] = [self.encode_text(instruction) for instruction in instructions]
        between = [EOI_ID, self._prompt(_UNCONDITION)[1], BOA_ID, BOI_ID]
        ids[:, self.text_length] = BOI_ID
        ids[:, self.source] = _with_newlines(source)
        ids[:, self.source.stop : self.canvas.start] = between
        ids[:, self.canvas] = _with_newlines(canvas)
        ids[:, self.canvas.stop :] = [EOI_ID, EOA_ID]
        return ids

    def grid(self, sequences: Ids, part: str = "canvas") -> Grid:
        """
        The codes of the canvas, or of the source, (B, rows, columns); a mask becomes -1.

        Raises:
            ValueError: for sequences of another length, a newline that is not where it belongs, or ids that are none.
        """
        if sequences.ndim != 2 or sequences.shape[1] != self.length:
            raise ValueError(f"`sequences` has shape {sequences.shape}: pass (B, {self.length}).")
        rows = sequences[:, getattr(self, part)].reshape(-1, self.rows, self.columns + 1)
        ids = rows[..., :-1]
        wrong = (ids != MASK_ID) & ((ids < FIRST_CODE) | (ids >= VOCAB_SIZE))
        if (rows[..., -1] != NEWLINE_ID).any() or wrong.any():
            raise ValueError(
                f"`sequences` has no {self.rows} rows of {self.columns} image codes and a newline in its {part}: it "
                "was made with another layout."
            )
        return np.where(ids == MASK_ID, -1, ids - FIRST_CODE)

    def attention_mask(self, ids: Tensor) -> Tensor:
        """(B, N) long: 0 at the padding."""
        return (ids != PAD_ID).long()

    def without_text(self, ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Ids (B, N), or ids of runs (B, N, S), with the unconditional prefix in the text slots, and their mask."""
        prefix = [PAD_ID] * (self.text_length - len(self.unconditional_text)) + self.unconditional_text
        ids = ids.clone()
        ids[:, : self.text_length] = torch.tensor(prefix, device=ids.device).reshape(-1, *[1] * (ids.dim() - 2))
        if attention_mask is None:
            return ids, None
        attention_mask = attention_mask.clone()
        attention_mask[:, : self.text_length] = torch.tensor(prefix, device=ids.device) != PAD_ID
        return ids, attention_mask

    def without_source(self, ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """
        Ids (B, N), or ids of runs (B, N, S), without the source, and their mask, as `source_drop` says.

        Raises:
            ValueError: for `"remove"` without an attention mask.
        """
        if self.source_drop == "remove":
            if attention_mask is None:
                raise ValueError(
                    'source_drop="remove" hides the source: pass the attention mask, or train with "mask".'
                )
            hidden = attention_mask.clone()
            hidden[:, self.source.start - 1 : self.source.stop + 1] = 0  # BOI and EOI too
            return ids, hidden
        ids = ids.clone()
        places = torch.arange(self.source.start, self.source.stop)[torch.from_numpy(self._is_code)]
        ids[:, places.to(ids.device)] = MASK_ID
        return ids, attention_mask

    @property
    def _is_code(self) -> npt.NDArray[np.bool_]:
        return np.arange(self.rows * (self.columns + 1)) % (self.columns + 1) < self.columns

    def _prompt(self, instruction: str) -> tuple[list[int], int]:
        """The prompt's ids before the source picture, and the one behind it, `</user>`."""
        *before, behind = self.tokenizer(dimoo_prompt(instruction))["input_ids"]
        if behind != self.tokenizer.convert_tokens_to_ids(_END_OF_USER):
            raise ValueError(
                f"`tokenizer` does not end a prompt with {_END_OF_USER} as one token: pass the tokenizer of "
                "Lumina-DiMOO."
            )
        return before, behind


def _is_text(instruction: Any) -> bool:
    """Whether a tokenizer can read it."""
    return isinstance(instruction, str) and not any("\ud800" <= character <= "\udfff" for character in instruction)


def _with_newlines(grid: Grid) -> Ids:
    """(B, rows, columns) codes as ids, row by row, each row closed by a newline."""
    return np.pad(grid + FIRST_CODE, ((0, 0), (0, 0), (0, 1)), constant_values=NEWLINE_ID).reshape(len(grid), -1)


class VQTokens:
    """
    DiMOO's image tokens: diffusers' `VQModel` and its image processor, as a codebook of this package.

    Its decoder normalises over the whole picture and attends to all of it: what a token changes has no border, unlike
    under [`PatchCodebook`].

    Args:
        vqvae (`diffusers.VQModel`): with a codebook of 8,192 entries.
        batch_size (`int`, defaults to 8): pictures at a time.

    Raises:
        ValueError: for another codebook.
    """

    def __init__(self, vqvae: Any, batch_size: int = 8) -> None:
        found = vqvae.config.num_vq_embeddings
        if found != CODES:
            raise ValueError(f"`vqvae` has {found} codes: Lumina-DiMOO's has {CODES}.")
        from diffusers.image_processor import VaeImageProcessor

        self.vqvae = vqvae.eval()
        self.batch_size = batch_size
        self.patch = 2 ** (len(vqvae.config.block_out_channels) - 1)
        self.processor = VaeImageProcessor(vae_scale_factor=self.patch, do_normalize=False)

    def __len__(self) -> int:
        return CODES

    @torch.no_grad()
    def encode(self, images: Image) -> Grid:
        """(B, H, W, 3) uint8 to (B, H / p, W / p) codes; a ValueError for pictures that do not fit."""
        check_images(images, self.patch)
        return np.concatenate([self._encode(images[i : i + self.batch_size]) for i in self._starts(images)])

    def _encode(self, images: Image) -> Grid:
        pixels = self.processor.preprocess(images.astype(np.float32) / 255)
        latents = self.vqvae.encode(pixels.to(self.vqvae.device, self.vqvae.dtype)).latents
        codes = self.vqvae.quantize(latents)[2][2]
        return codes.reshape(len(images), *latents.shape[2:]).cpu().numpy().astype(np.int64)

    @torch.no_grad()
    def decode(self, grid: Grid) -> Image:
        """(B, h, w) codes to (B, h p, w p, 3) uint8."""
        return np.concatenate([self._decode(grid[i : i + self.batch_size]) for i in self._starts(grid)])

    def _decode(self, grid: Grid) -> Image:
        codes = torch.from_numpy(grid).to(self.vqvae.device)
        shape = (*grid.shape, self.vqvae.config.vq_embed_dim or self.vqvae.config.latent_channels)
        latents = self.vqvae.quantize.get_codebook_entry(codes.flatten(), shape)
        pixels = self.vqvae.decode(latents, force_not_quantize=True, shape=shape).sample.float().clamp(0, 1)
        return (255 * pixels.permute(0, 2, 3, 1) + 0.5).cpu().numpy().astype(np.uint8)

    def reconstruct(self, images: Image) -> Image:
        """What is left of pictures that are encoded and decoded."""
        return self.decode(self.encode(images))

    def _starts(self, pictures: Image | Grid) -> range:
        return range(0, len(pictures), self.batch_size)


def check_width(name: str | os.PathLike[str], **loading: Any) -> None:
    """
    Raise a ValueError for a checkpoint whose configuration says another width than DiMOO's vocabulary: nothing else of
    it has to be read for that.

    Args:
        name (`str` or path): Hub name or folder.
        loading: as for the network's `from_pretrained`.

    Raises:
        OSError: for a name without a configuration.
        ValueError: for another width.
    """
    config = loading.get("config") or _read_config(str(name), loading)
    width = getattr(config.get_text_config(), "vocab_size", None)
    if width != VOCAB_SIZE:
        raise ValueError(
            f"`name` is {str(name)!r}, a {config.model_type} checkpoint with a vocabulary of {width}, and "
            f"Lumina-DiMOO's is {VOCAB_SIZE}: pass a checkpoint of it, such as Alpha-VLLM/Lumina-DiMOO."
        )


def check_dimoo(model: Any) -> None:
    """
    Raise a ValueError unless the model is as wide as DiMOO's vocabulary, masks with its mask and may write codes.
    """
    if model.config.vocab_size != VOCAB_SIZE or model.config.mask_token_id != MASK_ID:
        raise ValueError(
            f"`model` has a vocabulary of {model.config.vocab_size} and the mask {model.config.mask_token_id}: "
            f"Lumina-DiMOO's are {VOCAB_SIZE} and {MASK_ID}. It is another checkpoint."
        )
    if any(token >= FIRST_CODE for token in model.config.suppressed_token_ids or ()):
        raise ValueError(
            "`model` suppresses image codes (ids that its tokenizer has no words for): load it with "
            "`DimooEditor.load`, or pass suppressed_token_ids=[] to from_backbone."
        )


@dataclass(frozen=True)
class DimooEditor:
    """
    Lumina-DiMOO, edited in place.

    Args:
        model ([`RMForMaskedDiffusion`]): its network.
        tokenizer: its tokenizer.
        tokens ([`VQTokens`]): its image tokens.

    Raises:
        ValueError: for a model of another width.
    """

    model: RMForMaskedDiffusion
    tokenizer: Any
    tokens: VQTokens

    def __post_init__(self) -> None:
        check_dimoo(self.model)

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        adapted: str | None = None,
        revision: str | None = None,
        adapted_revision: str | None = None,
        **backbone_kwargs: Any,
    ) -> DimooEditor:
        """
        From a checkpoint: network, tokenizer, and `vqvae` beside them.

        Args:
            name (`str` or path): Hub name or folder of Lumina-DiMOO.
            adapted (`str`, *optional*): Hub name or folder of a model or adapter trained here, in place of the bare
                network.
            revision (`str`, *optional*): commit, branch or tag of `name`, for all three parts; an adapter's own config
                names the revision of its base.
            adapted_revision (`str`, *optional*): that of `adapted`.
            backbone_kwargs: for the network's `from_pretrained` (`dtype`, `device_map`, ...); `token`, `cache_dir` and
                `local_files_only` for the other parts, too.

        Raises:
            ImportError: without diffusers.
            ValueError: for a checkpoint of another width, by its configuration: before its weights are read.
        """
        try:
            from diffusers import VQModel
        except ImportError as error:
            raise ImportError('image tokens need diffusers; run `pip install "hf-rm[image]"`.') from error
        from transformers import AutoTokenizer

        where = {key: backbone_kwargs[key] for key in _WHERE if key in backbone_kwargs}
        if revision is not None:
            where["revision"] = revision
        if adapted is not None:
            of = {} if adapted_revision is None else {"revision": adapted_revision}
            model = RMForMaskedDiffusion.from_pretrained(adapted, **of, **backbone_kwargs)
        else:
            kwargs = {**backbone_kwargs, **where}
            check_width(name, **kwargs)
            model = RMForMaskedDiffusion.from_backbone(
                str(name), suppressed_token_ids=[], history_scope="editable", backbone_kwargs=kwargs
            )
        check_dimoo(model)  # before the rest is fetched
        vqvae = VQModel.from_pretrained(name, subfolder="vqvae", **where).to(model.device)
        return cls(model.eval(), AutoTokenizer.from_pretrained(name, **where), VQTokens(vqvae))

    def edit(
        self,
        source: Image,
        instructions: Sequence[str],
        decoding: str = "revise",
        text_guidance: float = 2.5,
        image_guidance: float = 4.0,
        source_drop: str = "mask",
        **settings: Any,
    ) -> EditRun:
        """
        Edit pictures of one size as asked; cut them with [`shared_cut`] first.

        Args:
            source (`(B, H, W, 3)` uint8): the pictures.
            instructions (sequence of B `str`): the requests.
            decoding (`str`): a key of `DECODINGS`. `"revise"` needs a network that was trained by RM: the published
                one never predicts the mask; `"regenerate"` fills a canvas of masks.
            text_guidance, image_guidance (`float`): scales of [`TwoScaleGuidance`].
            source_drop (`str`, defaults to `"mask"`): of [`DimooLayout`], for the image's guidance; `"remove"` for the
                bare checkpoint.
            settings: as [`edit_images`]; `keep_pixels` is False unless it is given, since this decoder would leave
                seams.

        Raises:
            ValueError: for pictures and requests that do not fit.
        """
        check_images(source, self.tokens.patch, "source")
        rows, columns = (side // self.tokens.patch for side in source.shape[1:3])
        layout = DimooLayout.of(self.tokenizer, instructions, rows, columns, source_drop)
        scales = {"text_guidance": text_guidance, "image_guidance": image_guidance}
        settings = {"keep_pixels": False, **settings, **scales}
        return edit_images(self.model, layout, self.tokens, source, instructions, decoding, **settings)
