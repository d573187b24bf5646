# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Edits of composed pictures: real emoji, with their exact alpha masks, on crops of real photographs.

Every edit is a function of (seed, split, number) alone. Splits differ in what they are made of:

    train         training emoji on training photographs
    dev           the same material, other edits
    test_photos   training emoji on photographs that training never sees
    test          emoji and photographs that training never sees; each word of their names occurs in a training name
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...corruption.random import KeyedUniforms, row_keys

Image = npt.NDArray[np.uint8]

OPERATIONS = ("add", "remove", "replace", "recolour", "background")
SPLITS = ("train", "dev", "test_photos", "test")
PLACES = ("top left", "top right", "bottom left", "bottom right")
HUES = {
    "red": (255, 0, 0),
    "orange": (255, 140, 0),
    "yellow": (255, 235, 0),
    "green": (0, 190, 0),
    "blue": (20, 60, 255),
    "purple": (150, 0, 220),
    "pink": (255, 90, 180),
}
"""Colours that an object is given: its lightness and its saturation stay its own."""
BACKGROUNDS = {**HUES, "black": (10, 10, 10), "white": (245, 245, 245), "gray": (128, 128, 128)}
"""Plain colours that a background is given."""

WORDINGS: dict[str, tuple[str, ...]] = {
    "add": (
        "add {a} in the {place}",
        "put {a} at the {place}",
        "place {a} in the {place} corner",
        "draw {a} at the {place}",
    ),
    "remove": ("remove the {name}", "delete the {name}", "take away the {name}", "erase the {name}"),
    "replace": (
        "replace the {name} with {b}",
        "turn the {name} into {b}",
        "swap the {name} for {b}",
        "change the {name} to {b}",
    ),
    "recolour": (
        "make the {name} {colour}",
        "recolour the {name} in {colour}",
        "paint the {name} {colour}",
        "turn the {name} {colour}",
    ),
    "background": (
        "make the background {colour}",
        "change the background to {colour}",
        "replace the background with plain {colour}",
        "paint the background {colour}",
    ),
}
"""Every operation in several wordings; `{a}` and `{b}` come with their article."""

_TILE, _SHEET_COLUMNS, _PHOTO_SIDE = 64, 20, 224
_CENTRES = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))  # (x, y) of the places, as shares of the side
_SIZES, _ADDED_SIZE, _JITTER = (0.28, 0.34, 0.40), 0.34, 0.04
_VISIBLE_CHANGE = 40.0  # a recolouring moves the object's pixels by this much on average, or another colour is taken
_LIBRARY_PHOTOS = {
    "coffee.png": "train",
    "brick.png": "train",
    "gravel.png": "train",
    "rocket.jpg": "train",
    "chelsea.png": "test",
    "grass.png": "test",
}


class Emoji(NamedTuple):
    """An emoji of the sheet: its number there, its name and whether it is for training or for testing."""

    number: int
    name: str
    split: str


class Placed(NamedTuple):
    """An emoji in a picture: its number and the square it fills (left, top, side), in pixels."""

    emoji: int
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Edit:
    """
    What an edit asks for.

    Attributes:
        operation (`str`): one of `OPERATIONS`.
        instruction (`str`): the request in words.
        subject (`Placed`, *optional*): the object it is about; None when the background is.
        replacement (`int`, *optional*): the emoji that takes the subject's place.
        colour (`str`, *optional*): of the subject or of the background.
    """

    operation: str
    instruction: str
    subject: Placed | None = None
    replacement: int | None = None
    colour: str | None = None


@dataclass(frozen=True)
class EditExamples:
    """
    Edits side by side.

    Attributes:
        source, target (`(B, H, W, 3)` uint8): the pictures before and after.
        mask (`(B, H, W)` bool): the exact region of the edit: where the alpha of what changes is not zero.
        edits (list of [`Edit`]): what was asked for.
    """

    source: Image
    target: Image
    mask: npt.NDArray[np.bool_]
    edits: list[Edit]

    def __len__(self) -> int:
        return len(self.edits)

    @property
    def instructions(self) -> list[str]:
        """The requests in words."""
        return [edit.instruction for edit in self.edits]


@lru_cache(maxsize=1)
def emoji_list() -> tuple[Emoji, ...]:
    """The embedded emoji, in the order of their sheet."""
    with _data("emoji.csv").open(encoding="utf-8", newline="") as file:
        return tuple(Emoji(int(row["index"]), row["name"], row["split"]) for row in csv.DictReader(file))


@lru_cache(maxsize=8)
def emoji_pool(split: str = "train", count: int | None = None) -> tuple[Emoji, ...]:
    """
    The emoji of `"train"` or `"test"`, or `count` of them, spread over the list.

    Raises:
        ValueError: for fewer than the four that a scene needs.

    Example:
        >>> [emoji.name for emoji in emoji_pool(count=4)]
        ['abacus', 'delivery truck', 'leafy green', 'ringed planet']
    """
    of = [emoji for emoji in emoji_list() if emoji.split == split]
    count = len(of) if count is None else min(count, len(of))
    if count < 4:
        raise ValueError(f"`emoji` is {count}: a scene needs 4 different ones at least.")
    return tuple(of[i * len(of) // count] for i in range(count))


@lru_cache(maxsize=4096)
def render_emoji(index: int, side: int) -> npt.NDArray[np.float32]:
    """An emoji as (side, side, 4) RGBA, colours 0 to 255 and alpha 0 to 1. Do not write to it: it is cached."""
    left, top = index % _SHEET_COLUMNS * _TILE, index // _SHEET_COLUMNS * _TILE
    tile = _sheet().crop((left, top, left + _TILE, top + _TILE))
    rgba = np.asarray(tile.resize((side, side), _pillow().Resampling.LANCZOS), dtype=np.float32).copy()
    rgba[..., 3] /= 255
    rgba.setflags(write=False)
    return rgba


def recolour(rgba: npt.NDArray[np.float32], colour: str) -> npt.NDArray[np.float32]:
    """The same emoji in another hue: lightness stays, grey parts take some of the colour, black and white stay."""
    rgb = rgba[..., :3]
    value = rgb.max(-1, keepdims=True)
    saturation = 1 - rgb.min(-1, keepdims=True) / np.maximum(value, 1)
    saturation = np.maximum(saturation, 0.35)
    tinted = value * (1 - saturation + saturation * np.array(HUES[colour], dtype=np.float32) / 255)
    return np.concatenate((tinted, rgba[..., 3:]), -1)


def paste(canvas: npt.NDArray[np.float32], rgba: npt.NDArray[np.float32], placed: Placed) -> None:
    """Lay an emoji over a float picture (H, W, 3), in place."""
    square = canvas[placed.top : placed.top + placed.side, placed.left : placed.left + placed.side]
    square += rgba[..., 3:] * (rgba[..., :3] - square)


def generate_edits(
    count: int,
    seed: int = 0,
    split: str = "train",
    size: int = 64,
    operations: Sequence[str] = OPERATIONS,
    first: int = 0,
    cell: int = 1,
    emoji: int | None = None,
) -> EditExamples:
    """
    Edits number `first` to `first + count - 1` of a split; each is the same whichever others are made with it.

    Args:
        count (`int`): how many.
        seed (`int`, defaults to 0): another seed, other edits.
        split (`str`, defaults to `"train"`): one of `SPLITS`; the module's docstring says what they hold.
        size (`int`, defaults to 64): side of the pictures in pixels, 32 to 224.
        operations (sequence of `str`): drawn uniformly from these.
        first (`int`, defaults to 0): number of the first one.
        cell (`int`, defaults to 1): objects begin and end on multiples of this many pixels. The patch of a codebook
            here makes edits that coarse tokens can show.
        emoji (`int`, *optional*): use so many emoji of the split, spread over its list; all by default.

    Raises:
        ValueError: for an unknown split or operation, or a size, cell or number that the data cannot fill.
        ImportError: without pillow or scikit-image.

    Example:
        >>> examples = generate_edits(3, seed=1, split="test")
        >>> examples.source.shape, examples.mask.dtype
        ((3, 64, 64, 3), dtype('bool'))
        >>> bool((examples.source == examples.target)[~examples.mask].all())
        True
    """
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}: pass one of {', '.join(map(repr, SPLITS))}.")
    unknown = set(operations) - set(OPERATIONS)
    if unknown or not operations:
        raise ValueError(f"`operations` is {list(operations)}: pass some of {', '.join(map(repr, OPERATIONS))}.")
    if not 32 <= size <= _PHOTO_SIDE:
        raise ValueError(f"`size` is {size}: pass a side from 32 to {_PHOTO_SIDE} pixels.")
    if count < 1:
        raise ValueError(f"`count` is {count}: pass at least 1.")
    if not 1 <= cell <= size // 4:
        raise ValueError(f"`cell` is {cell}: pass 1 (anywhere) to {size // 4} pixels, a quarter of the side.")
    pool = emoji_pool("test" if split == "test" else "train", emoji)
    keys = row_keys(seed, 0, [f"edit/{split}/{first + number}" for number in range(count)])
    source = np.empty((count, size, size, 3), dtype=np.uint8)
    target, mask, edits = np.empty_like(source), np.empty((count, size, size), dtype=bool), []
    for row, numbers in enumerate(KeyedUniforms(keys).draw(_NUMBERS)):
        source[row], target[row], mask[row], edit = _make_edit(_Stream(numbers), split, pool, size, cell, operations)
        edits.append(edit)
    return EditExamples(source, target, mask, edits)


def instruction_words(instruction: str) -> list[str]:
    """
    The words of an instruction, in small letters and without commas and full stops.

    Example:
        >>> instruction_words("Remove the cat.")
        ['remove', 'the', 'cat']
    """
    return instruction.lower().replace(",", " ").replace(".", " ").split()


def known_words() -> list[str]:
    """Every word of an instruction that the training split can make, sorted."""
    texts = [wording.format(a="a an", b="", name="", place="", colour="") for w in WORDINGS.values() for wording in w]
    texts += [*PLACES, *BACKGROUNDS, *(emoji.name for emoji in emoji_list() if emoji.split == "train")]
    return sorted({word for text in texts for word in text.split()})


_NUMBERS = 48


class _Stream:
    """Uniform numbers one after another."""

    def __init__(self, numbers: npt.NDArray[np.float64]) -> None:
        self.numbers = iter(numbers.tolist())

    def below(self, count: int) -> int:
        return int(next(self.numbers) * count)

    def between(self, low: float, high: float) -> float:
        return low + next(self.numbers) * (high - low)

    def choose(self, items: Sequence[Any]) -> Any:
        return items[self.below(len(items))]

    def sample(self, items: Sequence[Any], count: int) -> list[Any]:
        """`count` different ones, in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(count)]


def _make_edit(
    stream: _Stream, split: str, pool: Sequence[Emoji], size: int, cell: int, operations: Sequence[str]
) -> tuple[Image, Image, npt.NDArray[np.bool_], Edit]:
    operation = stream.choose(operations)
    background = _background(stream, split, size)
    present = stream.below(3) + (operation != "add")
    emoji = stream.sample(pool, 4)
    places = stream.sample(range(len(PLACES)), 4)
    objects = [_place(stream, emoji[i].number, places[i], size, cell) for i in range(present)]
    wording, colour_start = stream.choose(WORDINGS[operation]), stream.below(len(BACKGROUNDS))
    others, newcomer = objects[1:], emoji[3]
    sprites = [render_emoji(placed.emoji, placed.side) for placed in objects]

    if operation == "add":
        subject = _square(newcomer.number, _CENTRES[places[3]], _ADDED_SIZE, 0.0, 0.0, size, cell)
        added = render_emoji(subject.emoji, subject.side)
        instruction = wording.format(a=_with_article(newcomer.name), place=PLACES[places[3]])
        edit = Edit(operation, instruction, subject)
        before, after = _draw(background, objects, sprites), _draw(background, [*objects, subject], [*sprites, added])
        return before, after, _support(subject, added, size), edit
    before = _draw(background, objects, sprites)
    if operation == "background":
        colour = list(BACKGROUNDS)[colour_start]
        plain = np.full_like(background, BACKGROUNDS[colour])
        edit = Edit(operation, wording.format(colour=colour), colour=colour)
        return before, _draw(plain, objects, sprites), _uncovered(objects, sprites, size), edit
    subject, sprite, name = objects[0], sprites[0], emoji[0].name
    region = _support(subject, sprite, size)
    if operation == "remove":
        after = _draw(background, others, sprites[1:])
        edit = Edit(operation, wording.format(name=name), subject)
    elif operation == "replace":
        new = render_emoji(newcomer.number, subject.side)
        after = _draw(background, objects, [new, *sprites[1:]])
        edit = Edit(operation, wording.format(name=name, b=_with_article(newcomer.name)), subject, newcomer.number)
        region |= _support(subject, new, size)
    else:
        colour = _visible_hue(sprite, colour_start)
        after = _draw(background, objects, [recolour(sprite, colour), *sprites[1:]])
        edit = Edit(operation, wording.format(name=name, colour=colour), subject, colour=colour)
    return before, after, region, edit


def _place(stream: _Stream, emoji: int, place: int, size: int, cell: int) -> Placed:
    share = stream.choose(_SIZES)
    across, down = stream.between(-_JITTER, _JITTER), stream.between(-_JITTER, _JITTER)
    return _square(emoji, _CENTRES[place], share, across, down, size, cell)


def _square(
    emoji: int, centre: tuple[float, float], share: float, across: float, down: float, size: int, cell: int
) -> Placed:
    side = max(1, round(share * size / cell)) * cell
    left, top = (round((middle * size - side / 2) / cell) * cell for middle in (centre[0] + across, centre[1] + down))
    return Placed(emoji, left, top, side)


def _draw(
    background: npt.NDArray[np.float32], objects: Sequence[Placed], sprites: Sequence[npt.NDArray[np.float32]]
) -> Image:
    canvas = background.copy()
    for placed, sprite in zip(objects, sprites, strict=True):
        paste(canvas, sprite, placed)
    return (canvas + 0.5).astype(np.uint8)


def _support(placed: Placed, sprite: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros((size, size), dtype=bool)
    mask[placed.top : placed.top + placed.side, placed.left : placed.left + placed.side] = sprite[..., 3] > 0
    return mask


def _uncovered(
    objects: Sequence[Placed], sprites: Sequence[npt.NDArray[np.float32]], size: int
) -> npt.NDArray[np.bool_]:
    mask = np.ones((size, size), dtype=bool)
    for placed, sprite in zip(objects, sprites, strict=True):
        mask[placed.top : placed.top + placed.side, placed.left : placed.left + placed.side] &= sprite[..., 3] < 1
    return mask


def _visible_hue(sprite: npt.NDArray[np.float32], start: int) -> str:
    """The first colour from `start` on that changes the object visibly; the one that changes it most otherwise."""
    hues = list(HUES)
    inside = sprite[..., 3] > 0.5
    changes = [np.abs(recolour(sprite, hue) - sprite)[inside, :3].max(-1).mean() for hue in hues]
    order = [(start + i) % len(hues) for i in range(len(hues))]
    return hues[next((i for i in order if changes[i] > _VISIBLE_CHANGE), int(np.argmax(changes)))]


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def _background(stream: _Stream, split: str, size: int) -> npt.NDArray[np.float32]:
    """A square crop of a photograph, (size, size, 3), mirrored or not."""
    photo = stream.choose(_photos("test" if split.startswith("test") else "train"))
    side = round(stream.between(size, min(photo.size)))
    left, top = stream.below(photo.width - side + 1), stream.below(photo.height - side + 1)
    crop = photo.resize((size, size), _pillow().Resampling.BOX, box=(left, top, left + side, top + side))
    pixels = np.asarray(crop, dtype=np.float32)
    return pixels[:, ::-1] if stream.below(2) else pixels


@lru_cache(maxsize=2)
def _photos(split: str) -> tuple[Any, ...]:
    """The photographs of a split, as pictures of Pillow with a shorter side of 224 pixels."""
    with _data("photos.csv").open(encoding="utf-8", newline="") as file:
        paths = [_data(row["file"]) for row in csv.DictReader(file) if row["split"] == split]
    paths += [_library_data(name) for name, of in _LIBRARY_PHOTOS.items() if of == split]
    return tuple(_load_photo(path) for path in paths)


def _load_photo(path: Any) -> Any:
    with path.open("rb") as file, _pillow().open(file) as picture:
        photo = picture.convert("RGB")
    scale = _PHOTO_SIDE / min(photo.size)
    if scale == 1:
        return photo
    return photo.resize((round(photo.width * scale), round(photo.height * scale)), _pillow().Resampling.LANCZOS)


@lru_cache(maxsize=1)
def _sheet() -> Any:
    with _data("emoji.png").open("rb") as file, _pillow().open(file) as picture:
        return picture.convert("RGBA")


def _data(name: str) -> Any:
    return files(__package__).joinpath("data", name)


def _library_data(name: str) -> Any:
    try:
        return files("skimage").joinpath("data", name)
    except ModuleNotFoundError as error:
        raise ImportError('the pictures of scikit-image are needed; run `pip install "hf-rm[image]"`.') from error


def _pillow() -> Any:
    try:
        from PIL import Image as pillow
    except ImportError as error:
        raise ImportError('image editing reads pictures with pillow; run `pip install "hf-rm[image]"`.') from error
    return pillow
