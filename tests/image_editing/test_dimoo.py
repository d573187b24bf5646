"""Lumina-DiMOO's sequences, crops and tokens, and editing with a tiny random copy that has the real ids."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_families import write_llada, write_lumina
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_rm import RMForMaskedDiffusion, RMTrainingArguments
from hf_rm.tasks.image_editing import dimoo
from hf_rm.tasks.image_editing.buckets import SizedCollator, SizedRows, bucket_cut, by_size
from hf_rm.tasks.image_editing.collator import edit_collator
from hf_rm.tasks.image_editing.dimoo import (
    DimooEditor,
    DimooLayout,
    VQTokens,
    check_dimoo,
    choose_crop,
    crop_sizes,
    dimoo_prompt,
    shared_cut,
)
from hf_rm.tasks.image_editing.layout import EditRows
from hf_rm.tasks.image_editing.pairs import EditPair, EditPairReader
from hf_rm.tasks.image_editing.report import read_records
from hf_rm.tasks.image_editing.trainer import ImageEditTrainer

ROOT = Path(__file__).parents[2]
# `system` is the prompt's fixed part as one word each; the ids are the published ones where there are any.
SPECIAL = {"<uncondition>": 126351, "<system>": 21, "</system>": 22, "<user>": 23, "</user>": 24}
WORDS = {word: 30 + i for i, word in enumerate(dict.fromkeys([*dimoo.SYSTEM_PROMPT.split(), *"paint it red".split()]))}
SYSTEM = [21, *(WORDS[word] for word in dimoo.SYSTEM_PROMPT.split()), 22, 23]
SOURCE = np.array([[[0, 1, 2], [3, 4, 8191]]])


@pytest.fixture(scope="module")
def tokenizer():
    fast = Tokenizer(models.WordLevel({"[UNK]": 0, **WORDS, **SPECIAL}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="[UNK]", additional_special_tokens=[*SPECIAL])


@pytest.fixture
def layout(tokenizer) -> DimooLayout:
    return DimooLayout.of(tokenizer, ["paint it red"], rows=2, columns=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer) -> Path:
    folder = write_lumina(
        tmp_path_factory.mktemp("dimoo"), vocab_size=dimoo.VOCAB_SIZE, embedding_size=dimoo.VOCAB_SIZE,
        mask_token_id=dimoo.MASK_ID, eos_token_id=126081, pad_token_id=126081,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vqvae():
    pytest.importorskip("diffusers")
    from diffusers import VQModel

    torch.manual_seed(0)
    return VQModel(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        num_vq_embeddings=8192, vq_embed_dim=4, sample_size=16,
    ).eval()  # fmt: skip


# Sequences


def test_every_id_of_a_sequence(layout: DimooLayout) -> None:
    ids = layout.sequences(["paint it red"], SOURCE, np.array([[[5, 5, 5], [6, 6, 7]]]))
    first, newline = 126356, 126084
    expected = [
        *SYSTEM, WORDS["paint"], WORDS["it"], WORDS["red"],
        126349, first, first + 1, first + 2, newline, first + 3, first + 4, 134547, newline, 126350, 24,
        126354, 126349, *[first + 5] * 3, newline, first + 6, first + 6, first + 7, newline, 126350, 126355,
    ]  # fmt: skip
    assert ids[0].tolist() == expected
    assert layout.length == len(expected) and dimoo.VOCAB_SIZE == 134_548
    text = len(SYSTEM) + 3
    assert (layout.source, layout.canvas) == (slice(text + 1, text + 9), slice(text + 13, text + 21))
    # Codes alone may change: no newline, no border, no text.
    assert layout.editable_mask.nonzero()[0].tolist() == [text + 13 + i for i in (0, 1, 2, 4, 5, 6)]
    assert (layout.grid(ids) == [[[5, 5, 5], [6, 6, 7]]]).all() and (layout.grid(ids, "source") == SOURCE).all()
    suppressed = layout.suppressed_token_ids
    assert len(suppressed) == first - 1 and dimoo.MASK_ID not in suppressed and newline in suppressed


def test_a_shorter_request_is_padded_on_the_left_and_nobody_sees_the_padding(layout: DimooLayout) -> None:
    ids = layout.sequences(["red", "paint it red"], np.repeat(SOURCE, 2, 0))
    assert ids[0, :3].tolist() == [126339, 126339, 21] and (ids[0, layout.text_length - 1] == WORDS["red"]).all()
    mask = layout.attention_mask(torch.from_numpy(ids))
    assert mask[0].tolist() == [0, 0] + [1] * (layout.length - 2) and mask[1].all()


def test_what_an_unconditional_branch_reads(layout: DimooLayout) -> None:
    ids = torch.from_numpy(layout.sequences(["paint it red"], SOURCE))
    text, mask = layout.without_text(ids, layout.attention_mask(ids))
    assert text[0, : layout.text_length].tolist() == [126339, 126339, *SYSTEM, 126351]
    assert mask is not None and torch.equal(mask, layout.attention_mask(text)) and mask.sum() == layout.length - 2
    assert torch.equal(text[:, layout.text_length :], ids[:, layout.text_length :])
    image, same = layout.without_source(ids, mask)
    assert same is mask
    changed = (image != ids)[0].nonzero().flatten().tolist()
    assert changed == [layout.source.start + i for i in (0, 1, 2, 4, 5, 6)]  # the newlines stay
    assert (image[0, changed] == dimoo.MASK_ID).all()


def test_a_removed_source_is_as_if_it_were_not_there(checkpoint, tokenizer) -> None:
    """The published checkpoint's sampler gives its image-unconditional branch the prompt and the answer alone."""
    model = RMForMaskedDiffusion.from_backbone(str(checkpoint), suppressed_token_ids=[], history_scope="editable")
    layout = DimooLayout.of(tokenizer, ["paint it red"], 2, 3, source_drop="remove")
    ids = torch.from_numpy(layout.sequences(["red"], SOURCE))  # two of padding
    whole = layout.attention_mask(ids)
    same, hidden = layout.without_source(ids, whole)
    assert torch.equal(same, ids) and (whole - hidden).nonzero()[:, 1].tolist() == list(
        range(layout.text_length, layout.text_length + 1 + 8 + 1)  # BOI, two rows with their newlines, EOI
    )
    short = [*SYSTEM, WORDS["red"], 24, *ids[0, layout.canvas.start - 2 :].tolist()]
    editable = torch.from_numpy(layout.editable_mask)[None]
    with torch.no_grad():
        logits = model.eval()(ids, hidden, editable_mask=editable).logits[0, layout.canvas]
        alone = model(torch.tensor([short]), editable_mask=editable[:, -len(short) :]).logits[0, -10:-2]
    assert torch.allclose(logits, alone, atol=2e-4) and logits.std() > 0.1
    with pytest.raises(ValueError, match="pass the attention mask"):
        layout.without_source(ids)
    with pytest.raises(ValueError, match="`source_drop`"):
        DimooLayout.of(tokenizer, ["red"], 2, 3, source_drop="forget")


def test_the_prompt_is_the_published_one() -> None:
    assert dimoo_prompt("add a cat") == (
        "<system>Generate an image applying the following editing instruction based on the original image.</system>"
        "<user>add a cat</user>"
    )


def test_wrong_newlines_offsets_words_and_widths_are_refused(tokenizer, layout: DimooLayout) -> None:
    ids = layout.sequences(["red"], SOURCE)
    for change in (lambda x: np.roll(x, 1, 1), lambda x: np.where(x == 126084, 126356, x), lambda x: x[:, 1:]):
        with pytest.raises(ValueError, match="`sequences`"):
            layout.grid(change(ids))
    with pytest.raises(ValueError, match="0 to 8191"):
        layout.sequences(["red"], SOURCE + 1)
    with pytest.raises(ValueError, match="slots"):
        layout.sequences(["paint it red it"], SOURCE)
    with pytest.raises(ValueError, match="empty"):
        layout.sequences([" "], SOURCE)
    other = Tokenizer(models.WordLevel({"[UNK]": 0, "<uncondition>": 5}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="not 126351"):
        DimooLayout.of(PreTrainedTokenizerFast(tokenizer_object=other, unk_token="[UNK]"), ["red"], 2, 3)
    assert dimoo_prompt("red").endswith("<user>red</user>")


# Pictures


def test_the_table_of_crops() -> None:
    sizes = crop_sizes()
    assert len(sizes) == len(set(sizes)) == 49
    assert [sizes[i] for i in (0, 5, 16, 24, 33, 48)] == [
        (1024, 256), (896, 288), (640, 384), (512, 512), (384, 672), (256, 1024),
    ]  # fmt: skip
    for width, height in sizes:
        assert width % 32 == height % 32 == 0 and width * height <= 512 * 512
        assert max(width, height) <= 4 * min(width, height)
    assert {(height, width) for width, height in sizes} == set(sizes)
    with pytest.raises(ValueError, match="`side`"):
        crop_sizes(500)


def test_the_crop_that_keeps_most() -> None:
    assert choose_crop(100, 100) == (512, 512)
    # Not the size that the picture has to be enlarged most for: (608, 416), (896, 288) and (896, 288) would be.
    assert (choose_crop(700, 500), choose_crop(1200, 400), choose_crop(1000, 300)) == (
        (576, 416), (864, 288), (896, 256),
    )  # fmt: skip
    assert choose_crop(5000, 100) == (1024, 256) and choose_crop(100, 5000) == (256, 1024)
    for width, height in ((640, 427), (427, 640), (1333, 2000)):
        found = choose_crop(width, height)
        losses = {size: abs(np.log(size[0] / size[1] * height / width)) for size in crop_sizes()}
        assert losses[found] == pytest.approx(min(losses.values()))


def test_source_and_target_and_mask_are_cut_alike() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    marked = np.zeros((60, 90), dtype=np.uint8)
    marked[20:40, 30:60] = 255
    one, two, mask = shared_cut(
        [Image.fromarray(pixels), Image.fromarray(pixels)], (64, 64), masks=[Image.fromarray(marked)]
    )
    assert one.size == two.size == mask.size == (64, 64) and np.array_equal(np.asarray(one), np.asarray(two))
    assert set(np.unique(np.asarray(mask))) == {0, 255}
    # Covered by 96 x 64, of which the middle 64 columns are kept.
    ys, xs = np.nonzero(np.asarray(mask))
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (16, 47, 21, 42)
    exact = shared_cut([Image.fromarray(pixels)], (90, 60))[0]
    assert np.array_equal(np.asarray(exact), pixels)
    with pytest.raises(ValueError, match="one size"):
        shared_cut([one, Image.new("RGB", (8, 8))])


def test_large_pictures_are_halved_before_they_are_resized_and_small_ones_smoothly_enlarged() -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    pixels[:2, 2:4] = np.array([[40, 80], [120, 200]])[..., None]
    pixels[4:, 4:] = 10 * np.arange(16).reshape(4, 4, 1)

    def cut(size: tuple[int, int], picture: np.ndarray = pixels) -> list:
        return np.asarray(shared_cut([Image.fromarray(picture)], size)[0])[..., 0].tolist()

    assert cut((4, 4)) == [[64, 110, 0, 0], [0, 0, 0, 0], [0, 0, 25, 45], [0, 0, 105, 125]]  # means of four
    assert cut((2, 2)) == [[44, 0], [0, 75]]  # and of these
    ramp = np.repeat(np.array([[0, 60, 120, 240]] * 4, dtype=np.uint8)[..., None], 3, -1)
    assert cut((8, 8), ramp)[0] == [0, 10, 43, 74, 101, 151, 219, 251]  # bicubic


def test_pictures_become_codes_and_come_back(vqvae) -> None:
    tokens = VQTokens(vqvae)
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    grid = tokens.encode(images)
    assert grid.shape == (2, 4, 6) and 0 <= grid.min() <= grid.max() < 8192 and len(np.unique(grid)) > 5
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        latents = vqvae.quant_conv(vqvae.encoder(pixels))
        table = vqvae.quantize.embedding.weight
        nearest = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 4), table).argmin(-1).reshape(2, 4, 6)
        shown = vqvae.decoder(vqvae.post_quant_conv(table[nearest].permute(0, 3, 1, 2)))
    assert (grid == nearest.numpy()).mean() > 0.95  # two entries may be equally near
    expected = (255 * shown.clamp(0, 1).permute(0, 2, 3, 1) + 0.5).numpy().astype(np.uint8)
    difference = np.abs(tokens.decode(nearest.numpy()).astype(int) - expected)
    assert tokens.decode(nearest.numpy()).shape == images.shape and difference.max() <= 1
    with pytest.raises(ValueError, match="multiples of 2"):
        tokens.encode(images[:, :7])


# The network


def test_a_padded_row_is_the_row_without_its_padding_and_the_network_looks_both_ways(checkpoint, tokenizer) -> None:
    model = RMForMaskedDiffusion.from_backbone(str(checkpoint), suppressed_token_ids=[], history_scope="editable")
    check_dimoo(model.eval())
    wide, narrow = (DimooLayout.of(tokenizer, [text], 2, 3) for text in ("paint it red", "red"))
    logits = []
    for layout in (wide, narrow):
        ids = torch.from_numpy(layout.sequences(["red"], SOURCE))
        editable = torch.from_numpy(layout.editable_mask)[None]
        with torch.no_grad():
            logits.append(
                model(ids, layout.attention_mask(ids), editable_mask=editable).logits[0, layout.source.start :]
            )
    assert logits[0].shape == (22, 134_548)  # the mask is among the scores
    assert torch.allclose(*logits, atol=2e-4) and logits[0].std() > 0.1
    # A token behind changes what is said in front, with zeros in the mask too.
    ids = torch.from_numpy(wide.sequences(["red"], SOURCE))
    changed = ids.clone()
    changed[0, wide.canvas.stop - 2] -= 1
    with torch.no_grad():
        before, after = (
            model(x, wide.attention_mask(x), editable_mask=torch.from_numpy(wide.editable_mask)[None])
            for x in (ids, changed)
        )
    assert not torch.allclose(before.logits[0, wide.source.start], after.logits[0, wide.source.start], atol=1e-4)


def test_editing_writes_codes_and_touches_nothing_else(checkpoint, tokenizer, vqvae) -> None:
    vqvae.save_pretrained(checkpoint / "vqvae")
    editor = DimooEditor.load(checkpoint)
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    editor.model.config.trained_to_remask = True
    run = editor.edit(images, ["paint it red", "red"], max_steps=3)
    assert (run.num_forwards % 3 == 0).all() and run.result.shape == images.shape
    assert (run.states[0] == editor.tokens.encode(images)).all() and run.states.max() < 8192
    alone = editor.edit(images[1:], ["red"], max_steps=3)
    assert (alone.states[-1][0] == run.states[len(alone.states) - 1][1]).all()
    filled = editor.edit(
        images, ["paint it red", "red"], decoding="regenerate", steps=2, text_guidance=0, image_guidance=0
    )
    assert (filled.states[0] == -1).all() and (filled.states[-1] >= 0).all()
    assert filled.num_forwards.tolist() == [2, 2]


def test_guidance_is_that_of_the_checkpoint_unless_asked_otherwise(checkpoint, tokenizer, vqvae, monkeypatch) -> None:
    model = RMForMaskedDiffusion.from_backbone(str(checkpoint), suppressed_token_ids=[], history_scope="editable")
    asked = []
    monkeypatch.setattr(dimoo, "edit_images", lambda *given, **named: asked.append((given, named)))
    editor, images = DimooEditor(model, tokenizer, VQTokens(vqvae)), np.zeros((1, 8, 12, 3), dtype=np.uint8)
    editor.edit(images, ["red"])
    editor.edit(images, ["red"], "regenerate", 1.0, 3.0, source_drop="remove", keep_pixels=True, steps=7)
    (first, named), (second, others) = asked
    assert named == {"text_guidance": 2.5, "image_guidance": 4.0, "keep_pixels": False} and first[-1] == "revise"
    assert others == {"text_guidance": 1.0, "image_guidance": 3.0, "keep_pixels": True, "steps": 7}
    assert (first[1].source_drop, second[1].source_drop, second[-1]) == ("mask", "remove", "regenerate")


def test_all_parts_of_a_checkpoint_come_from_one_revision(checkpoint, vqvae, monkeypatch) -> None:
    import transformers

    asked = {}

    def noting(name, original):
        def load(*given, **named):
            asked[name] = {**named, **named.get("backbone_kwargs", {})}
            for key in ("revision", "token"):
                named.pop(key, None)
            if "backbone_kwargs" in named:
                named["backbone_kwargs"] = {}
            return original(*given, **named)

        return load

    vqvae.save_pretrained(checkpoint / "vqvae")
    import diffusers

    monkeypatch.setattr(diffusers.VQModel, "from_pretrained", noting("vqvae", diffusers.VQModel.from_pretrained))
    tokenizers = transformers.AutoTokenizer
    monkeypatch.setattr(tokenizers, "from_pretrained", noting("tokenizer", tokenizers.from_pretrained))
    for name, load in (("bare", "from_backbone"), ("adapted", "from_pretrained")):
        monkeypatch.setattr(RMForMaskedDiffusion, load, noting(name, getattr(RMForMaskedDiffusion, load)))
    editor = DimooEditor.load(checkpoint, revision="abc", token="t", dtype="float32")
    assert all(asked[name]["revision"] == "abc" for name in ("bare", "vqvae", "tokenizer"))
    assert all(asked[name]["token"] == "t" for name in ("bare", "vqvae", "tokenizer"))
    assert "dtype" in asked["bare"] and "dtype" not in asked["vqvae"]
    own = checkpoint.with_name("own")
    editor.model.save_pretrained(own)
    DimooEditor.load(checkpoint, adapted=str(own), revision="abc", adapted_revision="def")
    assert (asked["adapted"]["revision"], asked["vqvae"]["revision"]) == ("def", "abc")
    DimooEditor.load(checkpoint, adapted=str(own), revision="abc")
    assert "revision" not in asked["adapted"]


# Several sizes


def sized_pairs() -> list[EditPair]:
    draw = np.random.default_rng(0)
    pairs = []
    for i, (height, width) in enumerate([(4, 6), (6, 4), (4, 6), (4, 4)]):
        source = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        target = source.copy()
        target[:2] = draw.integers(0, 256, (2, width, 3), dtype=np.uint8)
        request = ["red", "paint it red", "paint it", "it"][i]
        pairs.append(EditPair(source, target, (source != target).any(-1), request, request, i))
    return pairs


def test_pictures_of_several_sizes_make_rows_of_one_length(tokenizer, vqvae) -> None:
    tokens = VQTokens(vqvae)
    rows = SizedRows(iter(sized_pairs()), tokens, tokenizer)
    assert len(rows) == 4 and [rows[i]["idx"] for i in range(4)] == [0, 1, 2, 3]
    assert set(rows.layouts) == {(2, 3), (3, 2), (2, 2)}
    assert len({layout.length for layout in rows.layouts.values()}) == 1
    assert {len(rows[i]["input_ids"]) for i in range(4)} == {rows.layouts[2, 3].length}
    # Both of the commonest size first or where they came, but each with its own tokens and words.
    found = {}
    for i in range(4):
        (layout,) = (x for x in rows.layouts.values() if (x.editable_mask == rows[i]["editable_mask"]).all())
        ids = rows[i]["input_ids"][None]
        found[tokenizer.decode(ids[0, : layout.text_length]).split("<user>")[1].strip()] = (
            layout.grid(ids, "source"), layout.grid(ids),
        )  # fmt: skip
    for pair in sized_pairs():
        for grid, picture in zip(found[pair.instruction], (pair.source, pair.target), strict=True):
            assert (grid == tokens.encode(picture[None])).all()


def test_a_batch_of_several_sizes_is_every_row_as_it_would_be_alone(tokenizer, vqvae, checkpoint, tmp_path) -> None:
    rows = SizedRows(iter(sized_pairs()), VQTokens(vqvae), tokenizer)
    settings = {"full_corruption": 1.0, "text_drop": 0.5, "image_drop": 0.5, "first_states": 0.3}
    parts = {grid: edit_collator(layout, **settings) for grid, layout in rows.layouts.items()}
    collate = SizedCollator(list(parts.values()))
    collate.set_epoch(3)
    features = [{**rows[i % 4], "idx": i} for i in (3, 0, 1, 2, 6, 4, 7)]
    batch = collate(features)
    for i, feature in enumerate(features):
        (own,) = (x for x in parts.values() if (x.layout.editable_mask == feature["editable_mask"]).all())
        for name, value in own([feature]).items():
            assert torch.equal(batch[name][i], value[0]), name
    whole = torch.from_numpy(np.stack([feature["input_ids"] for feature in features]))
    assert torch.equal(collate.unedited(whole, batch["editable_mask"]), batch["unlikelihood_mask"])
    with pytest.raises(ValueError, match="none of the layouts"):
        collate([{**features[0], "editable_mask": ~features[0]["editable_mask"]}])
    with pytest.raises(ValueError, match="equal_layouts"):
        SizedCollator([edit_collator(DimooLayout.of(tokenizer, ["red"], *grid)) for grid in ((2, 3), (2, 2))])

    model = RMForMaskedDiffusion.from_backbone(str(checkpoint), suppressed_token_ids=[], history_scope="editable")
    args = RMTrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no", logging_strategy="no", pool_fraction=0.5, dataloader_pin_memory=False, loss_chunk_rows=8,
    )  # fmt: skip
    trainer = ImageEditTrainer(model, args, train_dataset=rows, data_collator=collate)
    assert np.isfinite(trainer.train().training_loss)


def test_pairs_are_cut_to_the_size_of_the_table_that_keeps_most_of_them(tmp_path) -> None:
    for name, size in (("wide", (640, 320)), ("tall", (100, 210)), ("square", (64, 64)), ("other", (128, 64))):
        picture = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{name}a.png")
        picture[: size[1] // 2] = 255 - picture[: size[1] // 2]
        Image.fromarray(picture).save(tmp_path / f"{name}b.png")
    names = ("wide", "tall", "square", "other")
    rows = [{"source": f"{name}a.png", "target": f"{name}b.png", "instruction": name} for name in names]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = EditPairReader(tmp_path / "pairs.jsonl", bucket_cut(64))
    sizes = {pair.instruction: pair.source.shape[:2] for pair in reader}
    assert sizes == {"wide": (32, 64), "tall": (64, 32), "square": (64, 64), "other": (32, 64)}
    groups = by_size(reader)
    assert [group.instructions for group in groups] == [["wide", "other"], ["tall"], ["square"]]
    assert groups[0].source.shape == (2, 32, 64, 3) and groups[0].mask[:, :14].mean() > 0.6
    assert not groups[0].mask[:, 18:].any()
    with pytest.raises(ValueError, match="`side`"):
        bucket_cut(100)


# Training


def test_training_on_its_sequences_corrupts_codes_only(checkpoint, tokenizer, layout: DimooLayout, tmp_path) -> None:
    target = SOURCE.copy()
    target[0, 1, 1] = 77
    rows = EditRows(
        layout.sequences(["red", "paint it red"], np.repeat(SOURCE, 2, 0), np.repeat(target, 2, 0)), layout
    )
    collate = edit_collator(layout, full_corruption=1.0, text_drop=0.5, image_drop=0.0, false_alarms=0.0)
    batch = collate([{**rows[0], "idx": i} for i in range(40)])
    where = layout.canvas.start + 5
    moved = batch["input_ids"][:, layout.text_length :] != torch.from_numpy(rows[0]["input_ids"])[layout.text_length :]
    assert moved.any(0).nonzero().flatten().tolist() == [where - layout.text_length]
    assert batch["unlikelihood_mask"][0].sum() == 5 and not batch["unlikelihood_mask"][0, where]
    assert torch.equal(batch["attention_mask"], layout.attention_mask(batch["input_ids"]))
    assert set(batch["attention_mask"].sum(-1).tolist()) == {layout.length - 2}
    assert (batch["input_ids"][:, 2] == 21).all() and {126351, WORDS["red"]} == set(
        batch["input_ids"][:, layout.text_length - 1].tolist()
    )

    model = RMForMaskedDiffusion.from_backbone(str(checkpoint), suppressed_token_ids=[], history_scope="editable")
    args = RMTrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-3, report_to="none", use_cpu=True,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, pool_fraction=0.5, dataloader_pin_memory=False,
        loss_chunk_rows=4,
    )  # fmt: skip
    shapes: list = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, out: shapes.append(tuple(out.shape)))
    before = model.get_input_embeddings().weight.detach().clone()
    ImageEditTrainer(model, args, train_dataset=rows, data_collator=collate).train()
    assert not torch.equal(before[dimoo.MASK_ID], model.get_input_embeddings().weight[dimoo.MASK_ID])
    # The scores of all positions never exist at once, the fourth loss included: 12 labelled ones in threes of four.
    assert set(shapes) == {(4, dimoo.VOCAB_SIZE)} and len(shapes) == 2 * 3 * 2


def test_a_checkpoint_of_another_width_is_refused(tmp_path, vqvae, tokenizer, checkpoint, monkeypatch) -> None:
    import diffusers

    folder = write_lumina(tmp_path / "narrow")
    vqvae.save_pretrained(folder / "vqvae")
    narrow = RMForMaskedDiffusion.from_backbone(str(folder), history_scope="editable")
    with pytest.raises(ValueError, match="134548"):
        check_dimoo(narrow)
    with pytest.raises(ValueError, match="134548"):
        DimooEditor(narrow, tokenizer, VQTokens(vqvae))
    with pytest.raises(ValueError, match="8192"):
        VQTokens(diffusers.VQModel(num_vq_embeddings=16, norm_num_groups=4, block_out_channels=(8,)))

    def read(*given, **named):
        raise AssertionError("weights were read first")

    narrow.save_pretrained(tmp_path / "adapted")
    monkeypatch.setattr(diffusers.VQModel, "from_pretrained", read)
    with pytest.raises(ValueError, match="vocabulary of 40 .*134548"):
        DimooEditor.load(checkpoint, adapted=str(tmp_path / "adapted"))
    monkeypatch.setattr(RMForMaskedDiffusion, "from_backbone", read)
    llada, sudoku = write_llada(tmp_path / "llada"), ROOT / "model_cards" / "rm-sudoku"
    for path, kind, width in ((folder, "llada", 40), (llada, "llada", 40), (sudoku, "reflective_masking", 10)):
        expected = (
            f"`name` is .*{path.name}', a {kind} checkpoint with a vocabulary of {width}, and .* is 134548: pass"
        )
        with pytest.raises(ValueError, match=expected):
            DimooEditor.load(path)
    with pytest.raises(AssertionError, match="weights"):
        DimooEditor.load(checkpoint)


def test_a_request_that_is_no_text_is_left_out_and_the_others_go_on(checkpoint, tokenizer, vqvae) -> None:
    model = RMForMaskedDiffusion.from_backbone(str(checkpoint), suppressed_token_ids=[], history_scope="editable")
    editor, images = DimooEditor(model, tokenizer, VQTokens(vqvae)), np.zeros((4, 8, 12, 3), dtype=np.uint8)
    run = editor.edit(images, ["red", None, 3, "\ud800"], decoding="regenerate", steps=1)
    assert list(run.left_out) == [1, 2, 3] and "`instruction` is None" in run.left_out[1]
    assert run.num_forwards.tolist() == [3, 0, 0, 0] and (run.states[-1, 1:] == run.states[0, 1:]).all()
    with pytest.raises(ValueError, match="`source` has sides 7 x 12"):
        editor.edit(images[:, :7], ["red"] * 4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_recipe_trains_an_adapter_and_evaluates_it(checkpoint, tmp_path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    diffusers.VQModel(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 5, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 5, block_out_channels=(8,) * 5, layers_per_block=1, norm_num_groups=4,
        num_vq_embeddings=8192, vq_embed_dim=4, sample_size=32,
    ).save_pretrained(shutil.copytree(checkpoint, tmp_path / "base") / "vqvae")  # fmt: skip
    draw = np.random.default_rng(0)
    for i, width in enumerate((40, 80, 40)):
        picture = draw.integers(0, 256, (40, width, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{i}a.png")
        picture[:20] = draw.integers(0, 256, (20, width, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{i}b.png")
    row = '{{"source": "{0}a.png", "target": "{0}b.png", "instruction": "paint it red"}}\n'
    (tmp_path / "pairs.jsonl").write_text("".join(row.format(i) for i in range(3)) + row.format(7))
    config = yaml.safe_load((ROOT / "recipes" / "configs" / "lumina-edit.yaml").read_text())
    config |= {
        "base": str(tmp_path / "base"), "output_dir": str(tmp_path / "out"), "size": 64, "lora_rank": 2,
        "model_init_kwargs": "{}", "max_steps": 2, "gradient_accumulation_steps": 1, "bf16": False, "use_cpu": True,
        "base_steps": 2, "warmup_steps": 0, "train_pairs": str(tmp_path / "pairs.jsonl"), "eval_batch_size": 2,
        "eval_pairs": str(tmp_path / "pairs.jsonl"), "sheet_edits": 1, "logging_steps": 1, "save_steps": 1,
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, str(ROOT / "recipes" / "lumina_edit.py"), "--config", str(tmp_path / "tiny.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    weights = tmp_path / "out" / "rm" / "adapter" / "adapter_model.safetensors"
    written = []
    for _ in range(2):
        run = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, cwd=tmp_path)
        assert run.returncode == 0, run.stderr[-3000:]
        written.append(weights.stat().st_mtime_ns)
    assert written[0] == written[1], "a finished training is not repeated"
    assert "1 pairs left out: 1 file missing" in run.stderr
    records = read_records(tmp_path / "out" / "records.json")
    assert [record["system"] for record in records] == ["copy", "oracle", "base, regenerated", "RM"]
    assert all(len(record["edits"]["psnr"]) == 3 for record in records)
    assert len(records[1]["reconstruction"]["target"]) == 3 and "encoded and decoded (PSNR)" in run.stdout
    assert records[2]["forwards"] == 6.0, "two steps of three branches"
    for name in ("base.png", "rm.png"):
        with Image.open(tmp_path / "out" / name) as sheet:
            assert sheet.height == 22 + 150, "one edit of the commonest size"
