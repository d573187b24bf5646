"""Users' files: what is read, what is left out and why."""

import json
import os
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_rm.tasks.image_editing import load_codebook
from hf_rm.tasks.image_editing.layout import EditLayout, pairs_layout
from hf_rm.tasks.image_editing.model import image_edit_config
from hf_rm.tasks.image_editing.pairs import EditPairReader, load_edit_pairs, shared_crop, square_cut


def write(folder: Path, rows: list) -> Path:
    path = folder / "edits.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pixels[10:20, 20:30] = 255 - pixels[10:20, 20:30]
    Image.fromarray(pixels).save(tmp_path / "b.png")
    return tmp_path


GOOD = {"source": "a.png", "target": "b.png", "instruction": "turn it over"}


def test_both_pictures_are_cut_by_one_crop(folder: Path) -> None:
    pairs = load_edit_pairs(write(folder, [GOOD]), size=40)
    a, b = (np.asarray(Image.open(folder / name))[:, 10:50] for name in ("a.png", "b.png"))
    assert shared_crop(60, 40) == (10, 0, 50, 40)
    assert (pairs.source[0] == a).all() and (pairs.target[0] == b).all()
    assert pairs.mask[0][~np.pad(np.ones((10, 10), bool), ((10, 20), (10, 20)))].sum() == 0
    assert pairs.mask[0, 10:20, 10:20].mean() > 0.9 and pairs.instructions == ["turn it over"]


def test_masks_and_boxes_follow_the_crop(folder: Path) -> None:
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[10:20, 20:30] = 255
    Image.fromarray(mask).save(folder / "m.png")
    pairs = load_edit_pairs(write(folder, [{**GOOD, "mask": "m.png"}, {**GOOD, "box": [20, 10, 30, 20]}]), size=40)
    assert (pairs.mask == (mask[:, 10:50] > 0)).all() and pairs.lines == [1, 2]


def test_bad_pairs_are_left_out_and_counted_and_the_rest_goes_on(folder: Path) -> None:
    Image.new("RGB", (30, 30)).save(folder / "small.png")
    Image.new("I;16", (60, 40)).save(folder / "deep.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "text.png").write_text("no picture")
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)  # 3.6 thousand million pixels in 57 bytes
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IEND\xaeB`\x82")
    rows = [
        GOOD,
        {**GOOD, "target": "missing.png"},
        {key: GOOD[key] for key in ("source", "instruction")},
        {**GOOD, "target": "small.png"},
        {**GOOD, "source": "deep.png"},
        {**GOOD, "source": "cut.png"},
        {**GOOD, "source": "text.png"},
        {**GOOD, "source": "bomb.png"},
        {**GOOD, "source": "../../etc/passwd"},
        {**GOOD, "mask": "small.png"},
        {**GOOD, "box": [50, 10, 70, 20]},
        {**GOOD, "box": "all"},
        {**GOOD, "target": "a.png"},
        "{not json",
        "[1, 2]",
        GOOD,
    ]
    pairs = load_edit_pairs(write(folder, rows))
    assert pairs.lines == [1, 16] and pairs.source.shape == (2, 64, 64, 3)
    assert pairs.left_out == Counter(
        {
            "file missing": 1,
            "no source, target or instruction": 2,
            "source and target of different sizes": 1,
            "picture of mode I;16": 1,
            "file is no picture, or damaged": 2,
            "picture too large": 1,
            "file name outside the folder": 1,
            "mask of another size than its picture": 1,
            "box outside its picture": 1,
            "box is not four whole numbers": 1,
            "nothing edited inside the crop": 1,
            "line is no JSON": 1,
        }
    )


def test_a_picture_at_which_pillow_fails_in_an_odd_way_is_left_out(folder: Path) -> None:
    """To turn it, Pillow writes its EXIF anew, and meets a text that claims to be a fraction: an AttributeError."""
    entries = struct.pack("<HHII", 0x010E, 5, 1, 38) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + struct.pack("<III", 0, 1, 2)
    Image.new("RGB", (40, 60)).save(folder / "odd.jpg", exif=exif)
    rows = [GOOD, {**GOOD, "source": "odd.jpg"}, {**GOOD, "mask": "odd.jpg"}, GOOD]
    pairs = load_edit_pairs(write(folder, rows))
    assert pairs.lines == [1, 4] and pairs.left_out == Counter({"file is no picture, or damaged": 2})


def test_a_mask_without_white_is_left_out_for_that_reason(folder: Path) -> None:
    marked = np.zeros((40, 60), dtype=np.uint8)
    marked[10:20, 20:30] = 1
    Image.fromarray(marked).save(folder / "ones.png")
    palette = Image.fromarray(marked).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    palette.save(folder / "palette.png")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(folder / "white.png")
    marked[:] = 0
    marked[:, :5] = 255  # white, but cut away
    Image.fromarray(marked).save(folder / "edge.png")
    names = ("ones.png", "palette.png", "white.png", "edge.png")
    pairs = load_edit_pairs(write(folder, [{**GOOD, "mask": name} for name in names]), size=40)
    assert pairs.lines == [3] and pairs.mask.sum() == 100
    assert pairs.left_out == Counter({"mask without white (over 127)": 2, "nothing edited inside the crop": 1})


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_in_a_mask_is_not_marked(folder: Path, mode: str) -> None:
    alpha = np.zeros((40, 60), dtype=np.uint8)
    alpha[10:20, 20:30] = 255
    mask = Image.new("L", (60, 40), 255).convert(mode)
    mask.putalpha(Image.fromarray(alpha))
    mask.save(folder / "m.png")
    mask.putalpha(0)
    mask.save(folder / "clear.png")
    pairs = load_edit_pairs(write(folder, [{**GOOD, "mask": "m.png"}, {**GOOD, "mask": "clear.png"}]), size=40)
    assert (pairs.mask == (alpha[:, 10:50] > 0)).all() and pairs.lines == [1]
    assert pairs.left_out == Counter({"mask without white (over 127)": 1})


def test_names_and_numbers_that_python_itself_refuses_end_no_run(folder: Path) -> None:
    os.symlink("round.png", folder / "again.png")
    os.symlink("again.png", folder / "round.png")
    rows = [
        GOOD,
        '{"source": "a.png", "target": "b.png", "instruction": "turn", "box": [' + "1" * 5000 + "]}",
        "[" * 100_000,
        '{"source": "\\ud800.png", "target": "b.png", "instruction": "turn"}',
        {**GOOD, "source": "x" * 300 + ".png"},
        {**GOOD, "target": "round.png"},
        '{"source": "a.png", "target": "b.png", "instruction": "turn \\udfff"}',
        GOOD,
    ]
    pairs = load_edit_pairs(write(folder, rows))
    assert pairs.lines == [1, 8]
    found = pairs.left_out
    assert found["line is no JSON"] == 2 and found["no source, target or instruction"] == 1
    # Which of the two reasons a long name and a loop have depends on Python's version.
    assert found["file name that leads nowhere"] >= 1 and found.total() == 6
    assert found["file name that leads nowhere"] + found["file is no picture, or damaged"] == 3


def test_pictures_of_more_pixels_than_asked_for_are_not_decoded(folder: Path) -> None:
    Image.new("RGB", (61, 40)).save(folder / "wide.png")
    with pytest.raises(ValueError, match="2 picture too large"):
        load_edit_pairs(write(folder, [GOOD, {**GOOD, "source": "wide.png", "target": "wide.png"}]), max_pixels=2399)
    rows = [GOOD, {**GOOD, "source": "wide.png", "target": "wide.png"}]
    pairs = load_edit_pairs(write(folder, rows), max_pixels=2400)
    assert pairs.lines == [1] and pairs.left_out == Counter({"picture too large": 1})


def test_pictures_stand_as_their_camera_held_them(folder: Path) -> None:
    upright = np.asarray(Image.open(folder / "a.png"))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(np.rot90(upright).copy()).save(folder / "turned.png", exif=exif)
    pairs = load_edit_pairs(write(folder, [{**GOOD, "source": "turned.png"}]), size=40)
    assert (pairs.source[0] == upright[:, 10:50]).all()


def test_the_same_rows_in_parquet_with_pictures_in_files_or_in_the_table(folder: Path) -> None:
    turn = {"input_images": ["a.png"], "output_images": ["b.png"], "prompt": "turn it over"}
    lines = load_edit_pairs(write(folder, [turn, turn]))
    pq.write_table(pa.Table.from_pylist([turn, turn]), folder / "edits.parquet")
    rows = load_edit_pairs(folder / "edits.parquet")
    assert rows.lines == [1, 2] and rows.instructions == lines.instructions
    assert (rows.source == lines.source).all() and (rows.mask == lines.mask).all()

    a, b = ({"bytes": (folder / name).read_bytes(), "path": None} for name in ("a.png", "b.png"))
    torn = {"bytes": a["bytes"][:100], "path": None}
    cells = [
        {"source": a, "target": b, "instruction": "turn it over", "description": "a picture", "box": [20, 10, 30, 20]},
        {"source": torn, "target": b, "instruction": "turn it over", "description": None, "box": None},
        {"source": {"bytes": None, "path": "a.png"}, "target": b, "instruction": "turn it over"},
    ]
    pq.write_table(pa.Table.from_pylist(cells), folder / "cells.parquet")
    held = load_edit_pairs(folder / "cells.parquet")
    assert held.lines == [1, 3] and held.left_out == Counter({"file is no picture, or damaged": 1})
    assert (held.source == lines.source).all() and held.descriptions == ["a picture", "turn it over"]

    turns = [{"data": [turn, {**turn, "prompt": "again"}]}]
    pq.write_table(pa.Table.from_pylist(turns), folder / "turns.parquet")
    assert load_edit_pairs(folder / "turns.parquet").instructions == ["turn it over", "again"]
    (folder / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(OSError, match="no Parquet"):
        load_edit_pairs(folder / "bad.parquet")


def test_a_reader_reads_a_pair_when_it_is_reached_and_words_without_a_limit(folder: Path) -> None:
    cut = square_cut(16)
    reader = EditPairReader(write(folder, [{**GOOD, "instruction": "word " * 99}, "{", GOOD]), cut)
    pairs = iter(reader)
    assert next(pairs).instruction.split() == ["word"] * 99
    (folder / "a.png").unlink()  # the second was not read yet
    assert list(pairs) == [] and reader.left_out == Counter({"line is no JSON": 1, "file missing": 1})
    with pytest.raises(ValueError, match="2 file missing"):
        list(reader)
    assert reader.left_out == Counter({"file missing": 2, "line is no JSON": 1})


def test_words_that_could_be_taken_for_codes_are_unknown(folder: Path) -> None:
    pairs = load_edit_pairs(write(folder, [{**GOOD, "instruction": "turn <3> into <mask>"}]))
    layout = pairs_layout(load_codebook(), pairs)
    assert list(layout.words) == ["into", "turn"]
    assert EditLayout.from_pretrained(layout.tokenizer(), image_edit_config(layout)).vocab_size == layout.vocab_size


def test_transparent_and_grey_pictures_become_colours(folder: Path) -> None:
    Image.new("RGBA", (60, 40), (255, 0, 0, 0)).save(folder / "clear.png")
    Image.new("L", (60, 40), 10).save(folder / "grey.png")
    pairs = load_edit_pairs(write(folder, [{**GOOD, "source": "clear.png", "target": "grey.png"}]))
    assert (pairs.source == 255).all() and (pairs.target == 10).all()


def test_a_file_without_any_usable_pair_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="1 file missing"):
        load_edit_pairs(write(folder, [{**GOOD, "source": "none.png"}]))
    with pytest.raises(ValueError, match="empty"):
        load_edit_pairs(write(folder, []))
    with pytest.raises(OSError):
        load_edit_pairs(folder / "none.jsonl")
    with pytest.raises(ValueError, match="`size`"):
        load_edit_pairs(write(folder, [GOOD]), size=4)


def test_rows_in_imgedit_s_own_names(folder: Path) -> None:
    turn = {"input_images": ["a.png"], "output_images": ["b.png"], "prompt": "turn it over"}
    rows = [
        turn,
        {"data": [turn, {**turn, "output_images": ["missing.png"]}, {**turn, "prompt": "again, please."}]},
        {**turn, "input_images": ["a.png", "b.png"]},
        {**turn, "prompt": "word " * 25},
        {**turn, "prompt": ", ."},
    ]
    pairs = load_edit_pairs(write(folder, rows))
    assert pairs.lines == [1, 2, 2] and pairs.instructions == ["turn it over", "turn it over", "again, please."]
    assert pairs.left_out == Counter(
        {
            "file missing": 1,
            "no source, target or instruction": 1,
            "instruction of more than 24 words": 1,
            "instruction without words": 1,
        }
    )
    layout = pairs_layout(load_codebook(), pairs, max_words=3)
    assert list(layout.words) == ["it", "over", "turn"] and layout.rows == 16
    assert layout.encode_text("turn it again")[:4] == [6, 4, 3, 1]
