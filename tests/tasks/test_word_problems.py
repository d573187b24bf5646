"""The made-up word problems, their tokenizer, and the tiny base model."""

import operator
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from hf_rm import RMForMaskedDiffusion
from hf_rm.tasks.math import extract_answer
from hf_rm.tasks.math.tiny import MAX_LENGTH, build_math_tokenizer, build_tiny_math_model
from hf_rm.tasks.math.word_problems import (
    CANVAS_LENGTH,
    EVENTS,
    LARGEST,
    OPENINGS,
    OPERATIONS,
    PROMPT_LENGTH,
    QUESTIONS,
    generate_problems,
    generate_sheets,
    split_of_numbers,
    split_of_skeleton,
    word_problem,
)
from hf_rm.tasks.text import decoded, encode_samples, prompt_ids

ROOT = Path(__file__).parents[2]
CARD = ROOT / "model_cards" / "tiny-math-base"
EAGER = {"attn_implementation": "eager"}  # not part of a saved model: to compare to the bit, it has to be named
COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@pytest.fixture(scope="module")
def problems():
    return {split: [word_problem(i, 5, split) for i in range(600)] for split in ("train", "test")}


@pytest.fixture(scope="module")
def samples():
    return {split: generate_problems(600, 5, split) for split in ("train", "test")}


@pytest.fixture(scope="module")
def tokenizer():
    return build_math_tokenizer()


# The corpus


def test_a_problem_depends_on_seed_split_and_index_alone(samples):
    assert generate_problems(600, 5, "test") == samples["test"]
    assert generate_problems(40, 5, "train") == samples["train"][:40]
    assert word_problem(39, 5, "train").question + "\n" == samples["train"][39].prompt
    assert generate_problems(40, 6, "train") != samples["train"][:40]
    keys = [sample.key for rows in samples.values() for sample in rows]
    assert len(set(keys)) == len(keys)


def test_the_corpus_is_the_one_the_base_was_trained_on():
    """Another corpus under the same seed would make the published base and its test split mean something else."""
    sample = generate_problems(1, 0, "test")[0]
    assert (sample.prompt, sample.completion) == FIRST_TEST_PROBLEM


FIRST_TEST_PROBLEM = (
    "Henry starts with 10 toys. Ida has 2 times as many. How many do they have together?\n",
    "10 * 2 = 20\n10 + 20 = 30\n#### 30",
)


def test_the_splits_share_neither_skeletons_nor_numbers(problems):
    train, test = problems["train"], problems["test"]
    assert not {p.skeleton for p in train} & {p.skeleton for p in test}
    assert not {p.numbers for p in train} & {p.numbers for p in test}
    for split, rows in problems.items():
        assert all(split_of_skeleton(p.skeleton) == split_of_numbers(p.numbers) == split for p in rows)
    # What makes the test split solvable: its sentences and most of its sums are known from training.
    sentences = {part for p in train for part in p.skeleton}
    assert sentences == {*OPENINGS, *EVENTS, *QUESTIONS}


def test_the_recorded_numbers_are_those_of_the_text(problems):
    for problem in (*problems["train"], *problems["test"]):
        assert tuple(map(int, re.findall(r"\d+", problem.question))) == problem.numbers


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_line_is_right_and_follows_from_what_is_known(problems, samples, split):
    words = {"doubles": 2, "half": 2}
    for problem, sample in zip(problems[split], samples[split], strict=True):
        *lines, last = sample.completion.split("\n")
        known = list(problem.numbers) + [n for word, n in words.items() if word in problem.question]
        used = set()
        for line in lines:
            left, sign, right, result = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", line).groups()
            assert COMPUTE[sign](int(left), int(right)) == int(result), line
            assert int(left) in known and int(right) in known, (sample, line)
            assert 1 <= int(result) <= LARGEST
            used |= {int(left), int(right)}
            known.append(int(result))
        assert used >= set(problem.numbers)  # no number is stated for nothing
        assert last == f"#### {known[-1]}"
        assert extract_answer(sample.completion) == sample.answer == str(known[-1])
        assert sample.group == str(len(lines)) and len(lines) in OPERATIONS


def test_operations_are_spread_evenly(samples):
    for rows in samples.values():
        counts = [sum(sample.group == str(n) for sample in rows) for n in OPERATIONS]
        assert min(counts) > 80, counts  # 120 expected, standard deviation 10


def test_sheets_are_right_and_keyed():
    sheets = generate_sheets(30, seed=3)
    assert generate_sheets(10, seed=3) == sheets[:10] and generate_sheets(10, seed=4) != sheets[:10]
    signs = set()
    for line in "\n".join(sheets).split("\n"):
        left, sign, right, result = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", line).groups()
        assert COMPUTE[sign](int(left), int(right)) == int(result), line
        assert max(int(left), int(result)) <= LARGEST
        signs.add(sign)
    assert signs == set("+-*/")


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`split` is 'valid'"):
        generate_problems(1, split="valid")
    with pytest.raises(ValueError, match="`count` is -1"):
        generate_problems(-1)


# The tokenizer


@pytest.mark.parametrize("split", ["train", "test"])
def test_texts_come_back_and_fit(samples, tokenizer, split):
    for sample in samples[split]:
        text = sample.prompt + sample.completion
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        # Apart or together: no token spans prompt and completion.
        assert ids == prompt_ids(sample, tokenizer) + tokenizer(sample.completion)["input_ids"]
    encoded = encode_samples(samples[split], tokenizer, MAX_LENGTH, CANVAS_LENGTH)
    assert encoded.too_long == [] and len(encoded.rows) == len(samples[split])
    for sample, row in zip(samples[split], encoded.rows, strict=True):
        assert len(row["input_ids"]) <= MAX_LENGTH <= 96 and len(row["input_ids"]) - CANVAS_LENGTH <= PROMPT_LENGTH
        assert decoded(row["input_ids"][-CANVAS_LENGTH:], tokenizer) == sample.completion


def test_numbers_are_single_tokens_and_specials_are_apart(tokenizer):
    assert len(tokenizer) < 512
    assert all(len(tokenizer(str(n))["input_ids"]) == 1 for n in range(LARGEST + 1))
    specials = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id, tokenizer.unk_token_id)
    assert len(set(specials)) == 4 and None not in specials
    assert tokenizer("zebra 75")["input_ids"] == [tokenizer.unk_token_id] * 2
    ids = [*tokenizer("7 + 2 =")["input_ids"], tokenizer.mask_token_id, tokenizer.eos_token_id]
    assert tokenizer.decode(ids) == "7 + 2 = <mask> <eos>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "7 + 2 ="


def test_it_is_saved_and_loaded(tokenizer, samples, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = samples["test"][0].prompt + samples["test"][0].completion
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.mask_token, loaded.pad_token, loaded.eos_token) == ("<mask>", "<pad>", "<eos>")
    assert loaded.model_max_length == MAX_LENGTH


# The model


def test_the_model_is_small_and_keyed_by_its_seed():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model, same, other = build_tiny_math_model(3), build_tiny_math_model(3), build_tiny_math_model(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.num_parameters() <= 1_500_000
    weights = [network.model.layers[0].mlp.up_proj.weight for network in (model, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert model.config._attn_implementation == "eager"


def test_a_saved_model_keeps_its_logits(tmp_path, tokenizer):
    model = build_tiny_math_model(3, hidden_size=16, intermediate_size=32, num_layers=1).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = RMForMaskedDiffusion.from_backbone(str(tmp_path), backbone_kwargs=EAGER, history=True).eval()
    ids = torch.tensor([tokenizer("Anna has 12 pens.")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert loaded.config.mask_token_id == tokenizer.mask_token_id


# The published base


def test_the_published_base_loads_in_every_way(tokenizer):
    assert sum(file.stat().st_size for file in CARD.iterdir()) < 6_000_000
    loaded = AutoTokenizer.from_pretrained(CARD)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    plain = AutoModelForMaskedLM.from_pretrained(CARD, **EAGER)
    assert plain.num_parameters() <= 1_500_000 and plain.config.mask_token_id == loaded.mask_token_id
    assert AutoModel.from_pretrained(CARD).config.model_type == "llada"
    wrapped = RMForMaskedDiffusion.from_backbone(str(CARD), backbone_kwargs=EAGER, history=True)
    assert wrapped.config.mask_token_id == loaded.mask_token_id
    ids = torch.tensor([loaded("12 + 5 =")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(wrapped(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_the_published_base_knows_sums(tokenizer):
    """Where a sum's result is masked on a sheet, it mostly knows it."""
    model = AutoModelForMaskedLM.from_pretrained(CARD)
    sheets = generate_sheets(40, seed=987_654, lines=7)
    ids = torch.tensor(tokenizer(sheets)["input_ids"])
    results = list(range(4, ids.shape[1], 6))
    asked = ids.clone()
    asked[:, results[3]] = tokenizer.mask_token_id
    with torch.no_grad():
        guess = model(input_ids=asked).logits[:, results[3]].argmax(-1)
    assert (guess == ids[:, results[3]]).float().mean() > KNOWN_SUMS


KNOWN_SUMS = 0.7  # 0.88 of 300 on another sheet set


# The recipe


@pytest.mark.slow
def test_the_recipe_trains_saves_and_does_nothing_twice(tmp_path):
    out = tmp_path / "base"
    sizes = ["--hidden_size", "16", "--intermediate_size", "32", "--num_layers", "1"]
    steps = ["--max_steps", "4", "--per_device_train_batch_size", "4", "--lr_scheduler_type", "constant"]
    command = [
        *(sys.executable, "recipes/tiny_math_base.py", "--config", "recipes/configs/tiny-math-base.yaml"),
        *("--output_dir", str(out), "--lr_scheduler_kwargs", "{}", *sizes, *steps),
    ]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    model = RMForMaskedDiffusion.from_backbone(str(out))
    assert model.config.text_config.hidden_size == 16
    assert "4 steps of 4 windows, seed 0" in " ".join((out / "README.md").read_text().split())
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "finished before" in again.stdout
    shutil.rmtree(out)
