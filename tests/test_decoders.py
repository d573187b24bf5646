"""
Every decoder against an independent, slow, obvious one (tests/helpers/reference_decoders.py), and the laws of all.

Models are tiny random networks, or scripts; a reference sees one row at a time and no padding.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import reference_decoders as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ScriptedModel, fixed_logits, forbidden_forward, llama, one_hot_logits, wrapped
from torch import Tensor

from hf_rm import ReflectiveGenerationConfig, RMForMaskedDiffusion
from hf_rm.generation_config_rm import DEFAULTS, PRESETS
from hf_rm.generation_denoiser_rm import Denoised
from hf_rm.generation_output_rm import KEEP, REMASK, REPLACE
from hf_rm.generation_revision_rm import REVISION_RULES, RemaskLimits
from hf_rm.generation_rm import ReflectiveGenerationMixin, ReflectiveOutput, _DenoisingLoop
from hf_rm.generation_rules_rm import REVEAL_RULES, DenoisingStep, RemaskingTimes, Schedule

VOCAB, MASK = 11, 0
RESERVED = [5, 7]
BANNED = [MASK, *RESERVED]


class WithPolicy(ReflectiveGenerationMixin):
    """A model with an unmasking policy: the score of one token at each position, whatever that means."""

    has_unmasking_policy = True

    def __init__(self, model: Any, token: int = 3) -> None:
        self.model, self.config, self.token = model, model.config, token

    def _denoise(self, *args: Any, **kwargs: Any) -> Denoised:
        denoised = self.model._denoise(*args, **kwargs)
        return replace(denoised, policy=denoised.logits[..., self.token].clone())


def ids_of(*shape: int, seed: int = 0) -> Tensor:
    """Random ids without masks or reserved ids."""
    allowed = torch.tensor([token for token in range(VOCAB) if token not in BANNED])
    return allowed[torch.randint(0, len(allowed), shape, generator=torch.Generator().manual_seed(seed))]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@cache
def tiny(seed: int, history: bool = False) -> RMForMaskedDiffusion:
    """A wrapped tiny Llama, built once."""
    return wrapped(seed, history=history)


def row_model(model: Any) -> reference.Model:
    """A model of the package as the references want it: one row in, N x V floats out."""

    @cache
    def known(ids: tuple[int, ...]) -> reference.Scores:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].double().tolist()

    def scores(ids: list[int]) -> reference.Scores:
        return known(tuple(ids))

    return scores


class Lively(ScriptedModel):
    """Logits that depend on the whole row, and on every token of it: reveals, re-masks, changes of mind."""

    def __init__(self, seed: int, length: int, sharpness: float = 4.0) -> None:
        super().__init__(self.answer, vocab_size=VOCAB, mask_token_id=MASK)
        random = torch.Generator().manual_seed(seed)
        self.inwards = torch.randn(length * VOCAB, 16, generator=random, dtype=torch.float64)
        self.outwards = torch.randn(16, length * VOCAB, generator=random, dtype=torch.float64)
        self.sharpness = sharpness

    def answer(self, ids: Tensor) -> Tensor:
        state = torch.nn.functional.one_hot(ids, VOCAB).double().flatten(1)
        hidden = (state @ self.inwards / state.shape[1] ** 0.25).tanh()
        return (self.sharpness * hidden @ self.outwards / 4).view(*ids.shape, VOCAB).float()

    def row(self, ids: list[int]) -> reference.Scores:
        return self.answer(torch.tensor([ids]))[0].double().tolist()


def until_it_repeats(states: reference.States) -> int:
    """How many states there are up to the first that was there before (standing still is no return)."""
    for step in range(2, len(states)):
        if states[step] != states[step - 1] and states[step] in states[: step - 1]:
            return step + 1
    return len(states)


def states_of(output: ReflectiveOutput, row: int) -> list[list[int]]:
    """What happened to a row until it was done."""
    return output.trajectory.states[: int(output.num_steps[row]) + 1, row].tolist()


def assert_states(output: ReflectiveOutput, row: int, expected: reference.States) -> None:
    """The same states in the same order; a reference may go on for steps that change nothing."""
    got = states_of(output, row)
    assert got == expected[: len(got)]
    assert all(state == got[-1] for state in expected[len(got) :])


# LLaDA


@pytest.mark.parametrize("scale", [1.0, 2.5, 0.4])
@pytest.mark.parametrize(
    ("block_length", "steps", "split"),
    [
        (12, 5, [5]),
        (4, 12, [4, 4, 4]),
        (4, 6, [2, 2, 2]),
        (4, 3, [1, 1, 1]),
        (3, 7, [2, 2, 2, 1]),
        (5, 8, [3, 3, 2]),
    ],
)
def test_llada_token_for_token(block_length: int, steps: int, split: list[int], scale: float) -> None:
    prompts = ids_of(3, 5, seed=steps)
    model = tiny(steps, history=True)  # the preset reads no history, whatever the model has
    output = model.generate_reflective(
        prompts,
        preset="llada",
        max_new_tokens=12,
        block_length=block_length,
        steps=steps,
        guidance_scale=scale,
        suppressed_token_ids=RESERVED,
        output_trajectory=True,
    )
    scores = row_model(tiny(steps))
    for row, prompt in enumerate(prompts.tolist()):
        expected = reference.llada(scores, prompt, 12, block_length, split, MASK, BANNED, scale)
        assert_states(output, row, expected)
    assert output.num_steps.tolist() == [steps] * 3
    assert output.num_forwards.tolist() == [steps if scale == 1.0 else 2 * steps] * 3


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_llada_with_models_that_are_almost_certain(scale: float) -> None:
    """Probabilities of 1 - 1e-9 and 1 - 1e-12 are both 1 in 32 bits: their order must not be lost."""
    generator = torch.Generator().manual_seed(1)
    margins = 14 + 12 * torch.rand(10, generator=generator)
    logits = one_hot_logits(torch.full((10,), 3)) * 0 + torch.randn(10, 7, generator=generator) * 0.1
    logits[:, 3] += margins

    def scores(ids: list[int]) -> reference.Scores:
        return logits.double().tolist()

    output = ScriptedModel(fixed_logits(logits)).generate_reflective(
        torch.tensor([[4, 4]]), preset="llada", max_new_tokens=8, guidance_scale=scale, output_trajectory=True
    )
    assert_states(output, 0, reference.llada(scores, [4, 4], 8, 8, [8], MASK, [MASK], scale))


@pytest.mark.parametrize("rule", [{"threshold": 0.9}, {"threshold": 0.5}, {"factor": 1.0}, {"factor": 2.5}])
def test_fast_dllm_token_for_token(rule: dict[str, float]) -> None:
    prompts = ids_of(6, 4)
    if "factor" in rule:
        chosen: dict[str, Any] = {"reveal": "factor", "reveal_factor": rule["factor"]}
    else:
        chosen = {"reveal_threshold": rule["threshold"]}
    model = Lively(1, 18, sharpness=6.0)
    output = model.generate_reflective(
        prompts,
        preset="fast-dllm",
        max_new_tokens=14,
        block_length=6,
        suppressed_token_ids=RESERVED,
        output_trajectory=True,
        **chosen,
    )
    for row, prompt in enumerate(prompts.tolist()):
        expected = reference.fast_dllm(model.row, prompt, 14, 6, MASK, BANNED, **rule)
        assert states_of(output, row) == expected
    assert 3 < int(output.num_steps.min()) < 14  # more than one at a time, but not all


# Eq. 1 and its threshold


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2, 0.5, 0.8, 1.0])
def test_eq1_takes_back_where_the_masks_share_is_above_the_threshold(threshold: float | None) -> None:
    shares = torch.tensor([0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
    logits = torch.zeros(6, 7)
    logits[:, MASK] = shares.double().logit().float()  # of two atoms: token 3 has logit 0
    model = ScriptedModel(fixed_logits(logits))
    output = model.generate_reflective(
        torch.full((1, 6), 3), editable="all", revise_threshold=threshold, max_steps=1, output_trajectory=True
    )
    taken_back = output.trajectory.states[1, 0] == MASK
    assert taken_back.tolist() == (shares > (0.5 if threshold is None else threshold)).tolist()


# Token-to-Mask and T2T

EDITING = {
    "t2m-lowprob": ("low_prob", 0.3, 0.7, 1, 0.25),
    "t2m-t2t-remask": ("t2t_remask", 0.9, 0.7, 1, 0.25),
    "t2m-logit-diff": ("logit_diff", 0.3, 0.7, 1, 0.25),
    "llada2.1-quality": ("t2t", 0.5, 0.7, None, None),
    "llada2.1-speed": ("t2t", 0.0, 0.5, None, None),
}


def assert_editing(
    preset: str, seed: int, threshold: float, caps: tuple[int | None, float | None]
) -> ReflectiveOutput:
    """Six rows of a preset, state for state, and what came out."""
    detector, _, reveal_threshold, *_ = EDITING[preset]
    prompts, model = ids_of(6, 4, seed=seed), Lively(seed, 18)
    output = model.generate_reflective(
        prompts,
        preset=preset,
        revise_threshold=threshold,
        max_remasks_per_position=caps[0],
        max_remask_ratio=caps[1],
        max_new_tokens=14,
        block_length=8,
        suppressed_token_ids=RESERVED,
        output_trajectory=True,
    )
    for row, prompt in enumerate(prompts.tolist()):
        expected = reference.token_editing(
            model.row, prompt, 14, 8, MASK, BANNED, detector, threshold, reveal_threshold, *caps
        )
        got = states_of(output, row)
        # A run that has come back to an earlier state closes revision; the reference goes round for its 16 steps.
        compared = until_it_repeats(got) if output.stop_reason[row] in ("loop", "max_steps") else len(got)
        assert got[:compared] == expected[:compared]
        assert output.stop_reason[row] in ("loop", "max_steps") or len(got) == len(expected)
    assert int((output.num_edits if detector == "t2t" else output.num_remasks).sum()) > 0
    return output


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("preset", EDITING)
def test_token_editing_state_for_state(preset: str, seed: int) -> None:
    _, threshold, _, *caps = EDITING[preset]
    output = assert_editing(preset, seed, threshold, (caps[0], caps[1]))
    # The caps make an end certain; replacing may go round until its 16 steps are spent.
    assert set(output.stop_reason) <= {"converged"} | ({"max_revision_rounds"} if caps[0] is None else set())
    assert not (output.sequences == MASK).any()


@pytest.mark.parametrize("caps", [(2, 0.5), (None, 0.1), (3, None)])
@pytest.mark.parametrize("preset", ["t2m-lowprob", "t2m-t2t-remask", "t2m-logit-diff"])
def test_other_caps_state_for_state(preset: str, caps: tuple[int | None, float | None]) -> None:
    assert_editing(preset, 7, 0.8 * EDITING[preset][1], caps)


@pytest.mark.parametrize("case", range(9))
def test_detectors_and_caps_on_the_vectors(vectors: Callable[[str], Any], case: int) -> None:
    vector = vectors("token_to_mask")[case]
    scores = torch.tensor([vector["logits"]])
    # The vectors have no mask: it is one more token that nobody considers.
    logits = torch.cat((scores, torch.full_like(scores[..., :1], -torch.inf)), dim=-1)
    committed = torch.tensor([vector["committed"]])
    best_logit, best = scores.max(-1)
    one = torch.ones(1, dtype=torch.long)
    previous = vector["previous_probability"]
    step = DenoisingStep(
        ids=torch.tensor([vector["state"]]),
        logits=logits,
        masked=~committed,
        visible=committed,
        mask_token_id=scores.shape[-1],
        forbidden=torch.tensor([scores.shape[-1]]),
        proposal=best,
        best=best,
        best_logit=best_logit,
        log_partition=scores.logsumexp(-1),
        schedule=Schedule(one * 0, one, one, one * 12),
        memory={} if previous is None else {"probability": torch.tensor([previous])},
    )
    config = ReflectiveGenerationConfig(
        revise=vector["detector"],
        revise_threshold=vector["threshold"],
        max_remasks_per_position=vector["max_remasks_per_position"],
        max_remask_ratio=vector["max_remask_ratio"],
    )
    wanted = REVISION_RULES[vector["detector"]](config)(step)
    limits = RemaskLimits(config.max_remasks_per_position, config.max_remask_ratio)
    fired = limits(wanted.fires, wanted.ranks, committed, torch.tensor([vector["remask_counts"]]))
    assert fired[0].tolist() == vector["remask"]
    # The reference of this file says the same: it may judge the loop.
    ranks = {}
    for position, row in enumerate(vector["logits"]):
        if vector["committed"][position]:
            before = None if previous is None else previous[position]
            token = vector["state"][position]
            rank = reference.detect(vector["detector"], reference.softmax(row), [], token, before, vector["threshold"])
            if rank is not None:
                ranks[position] = rank
    taken = reference.cap(
        ranks,
        dict(enumerate(vector["remask_counts"])),
        sum(vector["committed"]),
        vector["max_remasks_per_position"],
        vector["max_remask_ratio"],
    )
    assert [position in taken for position in range(12)] == vector["remask"]


# ReMDM


def at_step(step: int, steps: int) -> Schedule:
    one = torch.ones(1, dtype=torch.long)
    return Schedule(one * step, one * steps, one * 8, one * 8)


@pytest.mark.parametrize("eta", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 16])
@pytest.mark.parametrize("variant", ["cap", "rescale", "conf", "loop"])
def test_remdm_probabilities_in_closed_form(variant: str, steps: int, eta: float) -> None:
    config = ReflectiveGenerationConfig(preset="remdm-loop", remdm_variant=variant, remdm_eta=eta)
    times = RemaskingTimes(config)
    for step in range(steps):
        sigma, reveal = reference.remdm_probabilities(variant, step, steps, eta)
        assert float(times.sigma(at_step(step, steps))) == pytest.approx(sigma, abs=1e-12)
        assert float(times.reveal_probability(at_step(step, steps))) == pytest.approx(reveal, abs=1e-6)
        assert 0 <= sigma <= 1 and -1e-9 <= reveal <= 1 + 1e-9


def test_remdm_worked_numbers() -> None:
    """method.md, section 8: t = .5, dt = .1, eta = .02."""
    expected = {"cap": (0.02, 0.22, 0.78), "rescale": (0.016, 0.216, 0.784)}
    for variant, (sigma, reveal, stay) in expected.items():
        times = RemaskingTimes(ReflectiveGenerationConfig(preset="remdm-loop", remdm_variant=variant, remdm_eta=0.02))
        assert float(times.sigma(at_step(5, 10))) == pytest.approx(sigma)
        assert float(times.reveal_probability(at_step(5, 10))) == pytest.approx(reveal)
        assert 1 - float(times.reveal_probability(at_step(5, 10))) == pytest.approx(stay)


def test_remdm_conf_shares_sigma_out_by_confidence() -> None:
    config = ReflectiveGenerationConfig(preset="remdm-loop", remdm_variant="conf")
    ids = torch.tensor([[3, 0, 4, 3, 2]])
    confidence = torch.tensor([[0.9, torch.nan, 0.2, torch.nan, 0.5]])  # the fourth was there from the start
    powers = [math.exp(-p) for p in (0.9, 0.2, 1.0, 0.5)]
    shares = [p / sum(powers) for p in powers]
    most, _ = reference.remdm_probabilities("conf", 5, 8, 0.02)
    for slack, fires in ((-1e-5, True), (1e-5, False)):
        drawn = torch.tensor([[most * shares[0], 0.0, most * shares[1], most * shares[2], most * shares[3]]]) + slack
        logits = torch.zeros(1, 5, 6)
        step = DenoisingStep(
            ids=ids,
            logits=logits,
            masked=ids == 0,
            visible=ids != 0,
            mask_token_id=0,
            forbidden=torch.tensor([0]),
            proposal=ids,
            best=ids,
            best_logit=logits[..., 0],
            log_partition=logits.logsumexp(-1),
            schedule=at_step(5, 8),
            uniforms=lambda stream, drawn=drawn: drawn,
            memory={"confidence": confidence},
        )
        assert REVISION_RULES["remdm"](config)(step).fires.tolist() == [[fires, False, fires, fires, fires]]


@pytest.mark.parametrize("variant", ["cap", "rescale", "loop", "conf"])
def test_remdm_keeps_the_expected_visible_share(variant: str) -> None:
    """1,500 rows: the visible share of every step within 4 standard errors of its expectation."""
    rows, length, steps, eta = 1500, 12, 10, 0.2
    output = ScriptedModel(lambda ids: torch.zeros(*ids.shape, 7)).generate_reflective(
        torch.zeros(rows, length, dtype=torch.long),
        generator=torch.Generator().manual_seed(0),
        preset="remdm-loop",
        remdm_variant=variant,
        remdm_eta=eta,
        steps=steps,
        output_trajectory=True,
    )
    visible = (output.trajectory.states != MASK).double().mean(-1)  # (S + 1, B)
    assert len(visible) == steps + 1
    # Under "conf" the shares of all visible tokens add up to sigma: at most one token a step is lost.
    expected, remasks = 0.0, 0
    for step in range(steps):
        sigma, reveal = reference.remdm_probabilities(variant, step, steps, eta)
        if variant == "conf":
            anything = float((visible[step] > 0).double().mean())
            expected += (1 - expected) * reveal - sigma * anything / length
        else:
            expected = reference.remdm_alpha(variant, 1 - (step + 1) / steps, (0.55, 0.05), 0.9)
        error = float(visible[step + 1].std()) / math.sqrt(rows)
        assert abs(float(visible[step + 1].mean()) - expected) <= 4 * error + 1e-9, step
        remasks += int((output.trajectory.actions[step] == REMASK).sum())
    assert expected == pytest.approx(1.0, abs=0.2 if variant == "conf" else 1e-9)
    assert remasks > 0
    assert not (output.sequences == MASK).any()
    assert output.num_steps.tolist() == [steps] * rows


# RemeDi


@pytest.mark.parametrize("case", range(5))
def test_policy_decoding_shows_k_n_tokens_after_each_step(vectors: Callable[[str], Any], case: int) -> None:
    """Scores drawn anew at every forward pass: whatever the policy says, the count is K_n."""
    vector = vectors("remedi")["unmask_schedule"][case]
    length, steps = vector["length"], vector["steps"]
    random = torch.Generator().manual_seed(case)

    class Moody(ScriptedModel):
        has_unmasking_policy = True

        def _denoise(self, *args: Any) -> Denoised:
            denoised = super()._denoise(*args)
            return replace(denoised, policy=torch.randn(denoised.logits.shape[:2], generator=random))

    model = Moody(lambda ids: one_hot_logits(torch.full_like(ids, 3)))
    output = model.generate_reflective(
        torch.tensor([[4, 4], [4, 2]]),
        preset="remedi",
        block_length=length,
        max_new_tokens=2 * length,
        steps=2 * steps,
        output_trajectory=True,
    )
    visible = (output.trajectory.states[1:, :, 2:] != MASK).sum(-1).T.tolist()
    counts = vector["cumulative"]
    assert counts == reference.remedi_counts(length, steps)
    assert visible == [[*counts, *[length + count for count in counts]]] * 2
    assert output.stop_reason == ["converged"] * 2
    assert int(output.num_remasks.sum()) > 0 or steps >= length


@pytest.mark.parametrize(("new", "steps", "split"), [(12, 5, [5]), (12, 12, [12]), (14, 9, [5, 4])])
def test_policy_decoding_state_for_state(new: int, steps: int, split: list[int]) -> None:
    prompts = ids_of(3, 4, seed=new)
    inner = tiny(new)
    output = WithPolicy(inner).generate_reflective(
        prompts,
        preset="remedi",
        block_length=12,
        max_new_tokens=new,
        steps=steps,
        suppressed_token_ids=RESERVED,
        output_trajectory=True,
    )
    scores = row_model(inner)
    for row, prompt in enumerate(prompts.tolist()):
        expected = reference.remedi(
            scores, lambda ids: [[s[3]] for s in scores(ids)], prompt, new, 12, split, MASK, BANNED
        )
        assert states_of(output, row) == expected
    assert int(output.num_remasks.sum()) > 0


def test_policy_decoding_in_every_block_at_once_keeps_k_n_of_all() -> None:
    output = WithPolicy(tiny(3)).generate_reflective(
        ids_of(2, 3),
        preset="remedi",
        block_length=4,
        max_new_tokens=8,
        steps=4,
        revise_scope="all",
        output_trajectory=True,
    )
    visible = (output.trajectory.states[1:, :, 3:] != MASK).sum(-1).T.tolist()
    assert visible == [[2, 4, 6, 8]] * 2


# Rows do not see each other

PRESET_SETTINGS: dict[str, dict[str, Any]] = {
    "rm-paper": {"max_steps": 25},
    "llada": {"steps": 6},
    "fast-dllm": {},
    "t2m-lowprob": {},
    "t2m-t2t-remask": {"revise_threshold": 0.5},
    "t2m-logit-diff": {"revise_threshold": 0.1},
    "llada2.1-quality": {"revise_threshold": 0.2},
    "llada2.1-speed": {},
    "remedi": {"steps": 6},
    "remdm-loop": {"steps": 8, "remdm_eta": 0.3},
}


@cache
def preset_model(preset: str, block_causal: bool) -> Any:
    if block_causal:
        model = RMForMaskedDiffusion.from_backbone(
            llama(VOCAB, seed=2), mask_token_id=MASK, attention_block_length=4, history_scope="editable"
        ).eval()
    else:
        model = tiny(2, history=True)
    return WithPolicy(model) if preset == "remedi" else model


def preset_settings(preset: str, block_causal: bool = False) -> dict[str, Any]:
    block = {} if block_causal else {"block_length": 4}
    common = {"preset": preset, "max_new_tokens": 7, "suppressed_token_ids": RESERVED}
    if block_causal:
        block["block_length"] = 4
    return {**common, **block, **PRESET_SETTINGS[preset]}


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths as one batch, and its attention mask."""
    width = max(map(len, rows))
    ids, attention_mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        where = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
        ids[row, where], attention_mask[row, where] = tokens, 1
    return ids, attention_mask


COUNTS = ("num_steps", "num_forwards", "num_reveals", "num_remasks", "num_edits", "num_revision_rounds")


def assert_same_rows(
    together: ReflectiveOutput, row: int, alone: ReflectiveOutput, other: int = 0, real: Tensor | None = None
) -> None:
    """Two runs agree on a row, in all it went through; `real` says which positions of the first are no padding."""
    steps = int(together.num_steps[row])
    for name in COUNTS:
        assert int(together[name][row]) == int(alone[name][other]), name
    assert together.stop_reason[row] == alone.stop_reason[other]
    states = together.trajectory.states[: steps + 1, row]
    actions = together.trajectory.actions[:steps, row]
    if real is not None:
        states, actions = states[:, real], actions[:, real]
    assert torch.equal(states, alone.trajectory.states[: steps + 1, other])
    assert torch.equal(actions, alone.trajectory.actions[:steps, other])


@pytest.mark.parametrize("block_causal", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_row_of_any_preset_is_the_same_in_any_batch(preset: str, block_causal: bool) -> None:
    """Mixed prompt lengths, both paddings, another order: the states, the counts and the ends of each row alone."""
    model, settings = preset_model(preset, block_causal), preset_settings(preset, block_causal)
    settings["output_trajectory"] = True
    rows = [ids_of(length, seed=length) for length in (3, 6, 1)]
    alone = [
        model.generate_reflective(tokens[None], generator=generators(row), **settings)
        for row, tokens in enumerate(rows)
    ]
    for side, order in (("left", (0, 1, 2)), ("right", (2, 0, 1))):
        ids, attention_mask = padded([rows[row] for row in order], side)
        together = model.generate_reflective(ids, attention_mask, generator=generators(*order), **settings)
        real = torch.cat((attention_mask, torch.ones(3, 7)), dim=1).bool()
        for place, row in enumerate(order):
            assert_same_rows(together, place, alone[row], real=real[place])


@pytest.mark.parametrize("preset", PRESETS)
def test_generators_decide_under_any_preset(preset: str) -> None:
    model = preset_model(preset, False)
    settings = {**preset_settings(preset), "temperature": 1.5}
    prompt = ids_of(1, 4).expand(4, -1)
    sampled = model.generate(prompt, generator=generators(1, 2, 1, 3), **settings)
    assert torch.equal(sampled[0], sampled[2])
    assert len({tuple(row) for row in sampled.tolist()}) > 1
    if preset == "remdm-loop":  # draws even where the tokens are not sampled
        settings["temperature"] = 0.0
        runs = model.generate_reflective(prompt, generator=generators(1, 2, 1, 3), output_trajectory=True, **settings)
        states = runs.trajectory.states
        assert torch.equal(states[:, 0], states[:, 2]) and not torch.equal(states[:, 0], states[:, 1])


# Steps, rounds and overshoot


@pytest.mark.parametrize("reveal", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize(("steps", "block_length"), [(3, 5), (4, 3), (10, None), (5, 2)])
@pytest.mark.parametrize("revise", [None, "reflective", "low_prob", "t2t"])
def test_at_most_steps_forwards_reveal(reveal: str, steps: int, block_length: int | None, revise: str | None) -> None:
    model = Lively(3, 14)
    output = model.generate_reflective(
        ids_of(4, 4),
        max_new_tokens=10,
        reveal=reveal,
        steps=steps,
        block_length=block_length,
        revise=revise,
        max_steps=60,
        max_revision_rounds=None if revise is None else 4,
    )
    assert int((output.num_steps - output.num_revision_rounds).max()) <= steps
    if revise is None:
        assert output.num_steps.tolist() == [steps] * 4
        assert len(model.seen) == steps
        assert output.num_revision_rounds.tolist() == [0] * 4


@pytest.mark.parametrize(
    "extra",
    [
        *[{"preset": preset} for preset in PRESETS],
        {"guidance_scale": 2.0, "revise": "low_prob"},
        {"stop_at_eos": True, "eos_token_id": 6, "reveal": "confidence"},
        {"max_revision_rounds": 2},
        {"revise": "t2t", "revise_threshold": 0.1, "max_revision_rounds": 3},
        {"revise_scope": "all", "revise": "low_prob", "max_remasks_per_position": 2},
        {"max_steps": 5},
    ],
    ids=str,
)
def test_overshoot_changes_nothing(extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are done wait up to 7 steps for the host to notice, and nothing about them changes."""
    preset = extra.get("preset")
    model = preset_model(preset or "rm-paper", False)
    settings = {"max_new_tokens": 7, "block_length": 3, "suppressed_token_ids": RESERVED, "max_steps": 25}
    settings |= {**(preset_settings(preset) if preset else {}), **extra, "output_trajectory": True}
    ids, attention_mask = padded([ids_of(length, seed=length + 3) for length in (3, 6, 1, 5)], "left")
    holes = (ids_of(4, 6, seed=9) == 8) & (attention_mask == 1)
    prompt = ids.masked_fill(holes & (torch.arange(6) < 5), MASK)

    def run(patience: int) -> ReflectiveOutput:
        begin = _DenoisingLoop.__init__

        def patient(self: Any, *args: Any) -> None:
            begin(self, *args)
            self.look_every = patience

        with monkeypatch.context() as patch:
            patch.setattr(_DenoisingLoop, "__init__", patient)
            return model.generate_reflective(prompt, attention_mask, generator=generators(0, 1, 2, 3), **settings)

    seldom, always = run(8), run(1)
    assert torch.equal(seldom.sequences, always.sequences)
    assert seldom.trajectory.states.shape == always.trajectory.states.shape
    for row in range(4):
        assert_same_rows(seldom, row, always, row)


def adversary(ids: Tensor) -> Tensor:
    """Whatever stands there is wrong, with certainty, by the lights of every rule."""
    favourite = torch.where(ids == 3, 4, 3)
    logits = torch.zeros(*ids.shape, VOCAB).scatter_(-1, favourite[..., None], 9.0)
    return logits.scatter(-1, ids[..., None], -9.0).index_fill(-1, torch.tensor([MASK]), 0.0)


@pytest.mark.parametrize("reveal", ["all", "confidence", "threshold", "factor", "margin", "entropy"])
@pytest.mark.parametrize("revise", [rule for rule in REVISION_RULES if rule not in ("policy", "remdm")])
def test_an_adversary_terminates(revise: str, reveal: str) -> None:
    settings = {"max_new_tokens": 9, "block_length": 4, "reveal": reveal, "revise": revise}
    model = ScriptedModel(adversary, vocab_size=VOCAB)
    free = model.generate_reflective(ids_of(2, 3), **settings)
    assert int((free.num_remasks + free.num_edits).min()) > 0
    assert not free.converged.any() or revise == "logit_diff"
    assert int(free.num_steps.max()) <= 64 + 2 * 9
    # With a bound on every position an end without masks is certain, without any help of `max_steps`.
    bounded = model.generate_reflective(ids_of(2, 3), max_remasks_per_position=2, **settings)
    assert bounded.stop_reason == ["converged"] * 2
    assert not (bounded.sequences == MASK).any()
    assert int((bounded.num_remasks + bounded.num_edits).max()) <= 2 * 9


def test_revision_reaches_back_with_scope_all_and_not_otherwise() -> None:
    """Each block goes on as soon as it is full: only a later block's steps can take its tokens back."""
    model = ScriptedModel(adversary, vocab_size=VOCAB)
    remasked = {}
    for scope in ("block", "all"):
        output = model.generate_reflective(
            ids_of(1, 3),
            max_new_tokens=9,
            block_length=3,
            revise="low_prob",
            revise_scope=scope,
            max_revision_rounds=0,
            max_remasks_per_position=1,
            output_trajectory=True,
        )
        assert not (output.sequences == MASK).any()
        remasked[scope] = (output.trajectory.actions == REMASK).sum(0)[0, 3:].tolist()
    assert remasked == {"block": [0] * 9, "all": [1] * 6 + [0] * 3}


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    rules=st.sampled_from([(reveal, revise) for reveal in REVEAL_RULES for revise in [*REVISION_RULES, None]]),
    scope=st.sampled_from(["block", "all"]),
    block_length=st.sampled_from([None, 3, 4]),
    temperature=st.sampled_from([0.0, 1.0]),
    guidance_scale=st.sampled_from([1.0, 1.5]),
    limits=st.sampled_from(
        [
            {},
            {"max_remasks_per_position": 1},
            {"max_remask_ratio": 0.3},
            {"max_remasks": 3},
            {"min_remasks_per_step": 0},
        ]
    ),
    rounds=st.sampled_from([None, 0, 2]),
    eos=st.sampled_from([{}, {"stop_at_eos": True}, {"suppress_eos": True}, {"delay_eos": True}]),
)
def test_no_mask_and_no_reserved_id_in_a_finished_output(
    seed: int,
    rules: tuple[str, str | None],
    scope: str,
    block_length: int | None,
    temperature: float,
    guidance_scale: float,
    limits: dict[str, Any],
    rounds: int | None,
    eos: dict[str, Any],
) -> None:
    reveal, revise = rules
    for name in ("policy", "remdm"):
        if name in rules:
            reveal = revise = name
    if "delay_eos" in eos and reveal in ("all", "policy", "remdm"):
        eos = {}
    ids = ids_of(3, 6, seed=seed).masked_fill(torch.arange(6) == 2, MASK)
    model = Lively(seed, 11)
    output = (WithPolicy(model) if revise == "policy" else model).generate_reflective(
        ids,
        attention_mask=torch.tensor([[1] * 6, [0, *[1] * 5], [1] * 6]),
        generator=generators(1, 2, 3),
        max_new_tokens=5,
        reveal=reveal,
        revise=revise,
        revise_scope=scope,
        block_length=block_length,
        temperature=temperature,
        guidance_scale=guidance_scale,
        max_revision_rounds=None if revise is None else rounds,
        suppressed_token_ids=RESERVED,
        eos_token_id=6 if eos else None,
        output_trajectory=True,
        **({} if revise is None else limits),
        **eos,
    )
    editable = torch.cat((ids == MASK, torch.ones(3, 5, dtype=torch.bool)), dim=1)
    finished = torch.tensor([reason != "max_steps" for reason in output.stop_reason])
    written = output.sequences[finished][editable[finished]]
    assert not set(written.tolist()) & {MASK, *RESERVED}
    assert torch.equal(output.sequences[:, :6][ids != MASK], ids[ids != MASK])
    assert not set(output.trajectory.states[:, editable].flatten().tolist()) & set(RESERVED)
    if eos.get("suppress_eos"):
        assert 6 not in written


# The end of a text

EOS = 6


def story(*tokens: int) -> ScriptedModel:
    """A model that is sure of these tokens behind a prompt of one token, surest of the last."""
    logits = one_hot_logits(torch.tensor([4, *tokens])) * torch.linspace(1, 2, len(tokens) + 1)[:, None]
    return ScriptedModel(fixed_logits(logits))


def tell(model: ScriptedModel, new: int, **settings: Any) -> ReflectiveOutput:
    return model.generate_reflective(
        torch.tensor([[4]]), max_new_tokens=new, reveal="confidence", revise=None, eos_token_id=EOS, **settings
    )


def test_stop_at_eos_ends_a_row_and_pads_what_follows() -> None:
    model = story(3, 2, EOS, 5, 3, 2)
    whole = tell(model, 6, block_length=2)
    assert whole.sequences.tolist() == [[4, 3, 2, EOS, 5, 3, 2]] and whole.num_steps.tolist() == [6]
    cut = tell(model, 6, block_length=2, stop_at_eos=True)
    assert cut.sequences.tolist() == [[4, 3, 2, EOS, EOS, EOS, EOS]]
    assert cut.num_steps.tolist() == [4]  # the third block was never begun
    assert cut.stop_reason == ["eos"] and cut.converged.tolist() == [True]
    assert tell(model, 6, block_length=2, stop_at_eos=True, pad_token_id=1).sequences.tolist() == [
        [4, 3, 2, EOS, 1, 1, 1]
    ]
    # In the last block nothing was left to do anyway.
    last = tell(model, 6, stop_at_eos=True, pad_token_id=1)
    assert last.sequences.tolist() == [[4, 3, 2, EOS, 1, 1, 1]]
    assert last.stop_reason == ["converged"] and last.num_steps.tolist() == [6]


def test_the_trajectory_ends_with_the_sequences() -> None:
    """A row is cut off at its own end, whatever the others do, and the actions say what became of each token."""
    model = ScriptedModel(lambda ids: one_hot_logits(torch.where(torch.arange(7) == ids[:, :1], EOS, 3)))
    # Answers of 6 in blocks of 2: the ends are at positions 2, 5 and 6, the last.
    ids = torch.tensor([[2], [5], [6]])
    settings = {"max_new_tokens": 6, "block_length": 2, "reveal": "confidence", "revise": None, "eos_token_id": EOS}
    settings |= {"stop_at_eos": True, "pad_token_id": 5, "output_trajectory": True}
    together = model.generate_reflective(ids, max_steps=20, **settings)
    states, actions = together.trajectory.states, together.trajectory.actions
    assert torch.equal(states[-1], together.sequences)
    assert together.sequences[0].tolist() == [2, 3, EOS, 5, 5, 5, 5]
    assert together.num_steps.tolist() == [2, 6, 6]
    assert torch.equal(actions == KEEP, states[:-1] == states[1:])
    assert (actions[:, 0] == REPLACE).sum(0).tolist() == [0, 0, 0, 1, 1, 1, 1]
    for row in range(3):
        alone = model.generate_reflective(ids[row : row + 1], max_steps=20, **settings).trajectory
        assert torch.equal(alone.states[:, 0], states[: len(alone.states), row])
        assert torch.equal(alone.actions[:, 0], actions[: len(alone.actions), row])


def test_padding_behind_the_end_is_the_models_own() -> None:
    model = story(3, EOS, 2)
    model.config.pad_token_id, model.config.eos_token_id = 5, EOS
    output = model.generate_reflective(torch.tensor([[4]]), max_new_tokens=3, revise=None, stop_at_eos=True)
    assert output.sequences.tolist() == [[4, 3, EOS, 5]]


def test_an_end_token_of_the_prompt_ends_nothing() -> None:
    output = ScriptedModel(fixed_logits(one_hot_logits(torch.tensor([4, 4, 3, 2])))).generate_reflective(
        torch.tensor([[4, EOS]]), max_new_tokens=2, block_length=1, revise=None, stop_at_eos=True, eos_token_id=EOS
    )
    assert output.sequences.tolist() == [[4, EOS, 3, 2]]


def test_suppressed_ends_are_never_written() -> None:
    output = tell(story(3, EOS, 2), 3, suppress_eos=True)
    assert EOS not in output.sequences
    revised = ScriptedModel(fixed_logits(one_hot_logits(torch.full((2,), EOS)))).generate(
        torch.tensor([[4, 3]]), editable="all", preset="llada2.1-speed", suppress_eos=True, eos_token_id=EOS
    )
    assert EOS not in revised


@pytest.mark.parametrize("reveal", ["confidence", "margin", "entropy", "threshold", "factor"])
def test_delayed_ends_are_written_last(reveal: str) -> None:
    def order(**settings: Any) -> list[int]:
        output = story(3, 2, EOS, 5, EOS).generate_reflective(
            torch.tensor([[4]]),
            max_new_tokens=5,
            reveal=reveal,
            reveal_threshold=1.0 if reveal == "threshold" else None,
            reveal_factor=0.0,
            revise=None,
            eos_token_id=EOS,
            output_trajectory=True,
            **settings,
        )
        assert output.sequences.tolist() == [[4, 3, 2, EOS, 5, EOS]]
        return output.trajectory.actions[:, 0].argmax(-1).tolist()

    assert order() == [5, 4, 3, 2, 1]  # surest first, which is the last
    assert order(delay_eos=True)[-2:] == [5, 3] or order(delay_eos=True)[-2:] == [3, 5]


# Bad input


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "block length 0": ({"block_length": 0}, "block_length"),
    "unknown preset": ({"preset": "llada3"}, "preset.*llada3"),
    "prompt too long": ({"max_new_tokens": 30}, "34 positions.*32"),
    "nothing editable": ({"max_new_tokens": None}, "nothing editable"),
    "guidance without a prompt": ({"editable": "all", "guidance_scale": 2.0}, "guidance_scale.*no prompt"),
    "negative guidance": ({"guidance_scale": -1.0}, "guidance_scale"),
    "cache of a bidirectional model": ({"use_cache": True}, "use_cache.*not block-causal"),
    "policy without one": ({"preset": "remedi"}, "policy.*ScriptedModel has none"),
    "half a policy": ({"reveal": "policy"}, "go together"),
    "the other half": ({"revise": "policy"}, "go together"),
    "half of ReMDM": ({"revise": "remdm"}, "go together"),
    "fewer steps than blocks": ({"preset": "llada", "block_length": 2, "steps": 1}, "`steps` is 1.*2 blocks"),
    "steps without a schedule": ({"preset": "fast-dllm", "steps": 4}, "steps.*schedule"),
    "a threshold that no rule reads": ({"preset": "remdm-loop", "revise_threshold": 0.5}, "revise_threshold"),
    "limits without revision": ({"preset": "llada", "max_remasks": 3}, "max_remasks"),
    "ends suppressed and awaited": ({"suppress_eos": True, "stop_at_eos": True, "eos_token_id": 3}, "suppress_eos"),
    "ends suppressed and delayed": ({"suppress_eos": True, "delay_eos": True, "eos_token_id": 3}, "suppress_eos"),
    "ends delayed by a rule without order": ({"delay_eos": True, "eos_token_id": 3}, "delay_eos.*reveal"),
    "no end token": ({"stop_at_eos": True}, "eos_token_id"),
    "an end token outside": ({"stop_at_eos": True, "eos_token_id": 99}, "eos_token_id"),
    "remdm window": ({"remdm_window": (0.1, 0.5)}, "remdm_window"),
    "remdm variant": ({"remdm_variant": "max"}, "remdm_variant"),
    "remdm eta": ({"remdm_eta": 1.5}, "remdm_eta"),
    "top_p alone": ({"top_p": 0.9}, "temperature"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused_before_any_forward(case: str) -> None:
    arguments, message = BAD[case]
    config = {"max_position_embeddings": 32, "eos_token_id": None}
    with pytest.raises(ValueError, match=message):
        ScriptedModel(forbidden_forward, **config).generate_reflective(
            torch.tensor([[4, 3, 2, 1]]), **{"max_new_tokens": 4, **arguments}
        )


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        ({"history": True, "history_scope": "all"}, 'history_scope="all"'),
        ({"logits_shift": True}, "shifted"),
    ],
)
def test_a_cache_that_cannot_hold_is_refused(traits: dict[str, Any], message: str) -> None:
    model = ScriptedModel(forbidden_forward, attention_block_length=4, **traits)
    with pytest.raises(ValueError, match=message):
        model.generate_reflective(torch.tensor([[4]]), max_new_tokens=4, use_cache=True)


def test_blocks_against_the_attention_are_refused() -> None:
    model = ScriptedModel(forbidden_forward, attention_block_length=4)
    with pytest.raises(ValueError, match="blocks of 4"):
        model.generate_reflective(torch.tensor([[4]]), max_new_tokens=4, block_length=2)


# The config

OVERRIDES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_p": 0.9},
    {"use_history": True},
    {"block_length": 16, "max_steps": 99, "patience": 3},
    {"suppressed_token_ids": [3, 4], "eos_token_id": [6, 7], "stop_at_eos": True},
    {"remdm_window": (0.8, 0.2)},
]


def values(config: ReflectiveGenerationConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in DEFAULTS}


def back_to_default(preset: str | None) -> dict[str, Any]:
    """Every setting of a preset that can be put back to the default without contradicting the others."""
    changed = {}
    for name in PRESETS.get(preset or "", {}):
        if name not in ("reveal", "revise") and PRESETS[preset or ""][name] != DEFAULTS[name]:
            changed[name] = DEFAULTS[name]
    return changed


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_configs_survive_json(preset: str | None, tmp_path: Path) -> None:
    for number, overrides in enumerate([*OVERRIDES, back_to_default(preset)]):
        config = ReflectiveGenerationConfig(preset=preset, **overrides)
        for name, value in overrides.items():
            assert getattr(config, name) == value
        text = config.to_json_string()
        assert values(ReflectiveGenerationConfig(**json.loads(text))) == values(config)
        folder = tmp_path / str(number)
        config.save_pretrained(folder)
        again = ReflectiveGenerationConfig.from_pretrained(folder)
        assert isinstance(again, ReflectiveGenerationConfig) and values(again) == values(config)
        assert values(ReflectiveGenerationConfig.from_dict(config.to_dict())) == values(config)
        assert values(config.updated()) == values(config)


def test_a_config_is_saved_beside_its_model(tmp_path: Path) -> None:
    model = wrapped(1)
    model.generation_config = ReflectiveGenerationConfig(preset="t2m-lowprob", max_remask_ratio=None, patience=2)
    model.save_pretrained(tmp_path)
    again = RMForMaskedDiffusion.from_pretrained(tmp_path)
    assert values(again.generation_config) == values(model.generation_config)
    ids = ids_of(2, 3)
    assert torch.equal(again.generate(ids, max_new_tokens=5), model.generate(ids, max_new_tokens=5))
    assert again.generation_config.max_remask_ratio is None


def test_another_preset_replaces_the_first_but_not_what_was_set_by_hand() -> None:
    config = ReflectiveGenerationConfig(preset="t2m-lowprob", max_new_tokens=9, max_remasks_per_position=4)
    changed = config.updated(preset="t2m-t2t-remask")
    fresh = ReflectiveGenerationConfig(preset="t2m-t2t-remask", max_new_tokens=9, max_remasks_per_position=4)
    assert values(changed) == values(fresh)
    assert config.revise == "low_prob"  # a copy was changed
    assert values(config.updated(preset=None, max_remasks_per_position=None)) == values(
        ReflectiveGenerationConfig(max_new_tokens=9)
    )
    assert config.updated(preset="llada", max_remasks_per_position=None).revise is None
    with pytest.raises(ValueError, match="max_remasks_per_position"):
        config.updated(preset="llada")  # set by hand, and llada revises nothing


def test_another_preset_replaces_rules_that_were_set_by_hand() -> None:
    """A model saved with a rule of its own could not be decoded by any preset that has another one."""
    own = ReflectiveGenerationConfig(reveal="threshold", reveal_threshold=0.8, editable="all", max_steps=9)
    paper = own.updated(preset="rm-paper")
    assert (paper.reveal, paper.revise, paper.editable, paper.max_steps) == ("all", "reflective", "all", 9)
    assert own.updated(preset="remdm-loop").reveal == "remdm"  # it contradicted the rule by hand
    assert own.updated(preset="rm-paper", reveal="margin").reveal == "margin"
    assert paper.reveal_threshold in (None, ReflectiveGenerationConfig(reveal="threshold").reveal_threshold)  # not 0.8
    assert own.updated(preset=None).reveal == own.updated(max_steps=3).reveal == "threshold"


@pytest.mark.parametrize("preset", PRESETS)
def test_training_free_presets_read_no_history(preset: str) -> None:
    assert ReflectiveGenerationConfig(preset=preset).use_history is (None if preset == "rm-paper" else False)
