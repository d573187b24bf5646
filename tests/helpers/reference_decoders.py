"""
Decoders as their authors describe them: one row, plain Python floats (64 bit), no batch, no tricks.

A model is a function from the ids of one row to its scores, a list of N lists of V floats. Every decoder returns all
states, the input first. What is compared with them is the loop of the package, which shares no code with this file.
"""

import math
from collections.abc import Callable, Sequence

Scores = list[list[float]]
Model = Callable[[list[int]], Scores]
States = list[list[int]]


def softmax(scores: Sequence[float], banned: Sequence[int] = ()) -> list[float]:
    """Probabilities; those of `banned` are 0, as if their scores were -inf."""
    allowed = [-math.inf if token in banned else score for token, score in enumerate(scores)]
    highest = max(allowed)
    powers = [math.exp(score - highest) for score in allowed]
    total = math.fsum(powers)
    return [power / total for power in powers]


def best_token(scores: Sequence[float], banned: Sequence[int]) -> int:
    """The first of the highest scores among what may be written."""
    return max((token for token in range(len(scores)) if token not in banned), key=lambda token: scores[token])


def surest(confidence: dict[int, float], count: int) -> list[int]:
    """The `count` positions of highest confidence, the lower index first among equals."""
    return sorted(confidence, key=lambda position: (-confidence[position], position))[:count]


def guided(model: Model, ids: list[int], prompt: Sequence[int], mask: int, scale: float) -> Scores:
    """Classifier-free guidance, u + scale (c - u): masks stand in place of the prompt in the unconditional branch."""
    conditional = model(ids)
    if scale == 1.0:
        return conditional
    without = model([mask if position in prompt else token for position, token in enumerate(ids)])
    return [
        [u + scale * (c - u) for c, u in zip(first, second, strict=True)]
        for first, second in zip(conditional, without, strict=True)
    ]


def transfer_counts(masks: int, steps: int) -> list[int]:
    """LLaDA's linear schedule: masks // steps each, one more for the first masks % steps."""
    return [masks // steps + (1 if step < masks % steps else 0) for step in range(steps)]


def llada(
    model: Model,
    prompt: list[int],
    new: int,
    block_length: int,
    steps_of_blocks: list[int],
    mask: int,
    banned: Sequence[int],
    scale: float = 1.0,
) -> States:
    """LLaDA's semi-autoregressive low-confidence decoding, greedy. `banned` holds the mask and the reserved ids."""
    ids = [*prompt, *[mask] * new]
    states = [list(ids)]
    for number, steps in enumerate(steps_of_blocks):
        begin = len(prompt) + number * block_length
        end = min(begin + block_length, len(ids))
        for count in transfer_counts(sum(token == mask for token in ids[begin:end]), steps):
            scores = guided(model, ids, range(len(prompt)), mask, scale)
            confidence, answer = {}, {}
            for position in range(begin, end):
                if ids[position] == mask:
                    answer[position] = best_token(scores[position], banned)
                    confidence[position] = softmax(scores[position], banned)[answer[position]]
            for position in surest(confidence, count):
                ids[position] = answer[position]
            states.append(list(ids))
    return states


def fast_dllm(
    model: Model,
    prompt: list[int],
    new: int,
    block_length: int,
    mask: int,
    banned: Sequence[int],
    threshold: float | None = None,
    factor: float | None = None,
) -> States:
    """Fast-dLLM's parallel decoding: masks above a threshold at once, or as many as its factor rule allows."""
    ids = [*prompt, *[mask] * new]
    states = [list(ids)]
    for begin in range(len(prompt), len(ids), block_length):
        block = range(begin, min(begin + block_length, len(ids)))
        while any(ids[position] == mask for position in block):
            scores = model(ids)
            confidence, answer = {}, {}
            for position in block:
                if ids[position] == mask:
                    answer[position] = best_token(scores[position], banned)
                    confidence[position] = softmax(scores[position], banned)[answer[position]]
            order = surest(confidence, len(confidence))
            taken = 1
            if threshold is not None:
                taken = max(1, sum(confidence[position] > threshold for position in order))
            elif factor is not None:
                while taken < len(order) and (taken + 2) * (1 - confidence[order[taken]]) < factor:
                    taken += 1
            for position in order[:taken]:
                ids[position] = answer[position]
            states.append(list(ids))
    return states


def detect(
    detector: str,
    probabilities: Sequence[float],
    banned: Sequence[int],
    token: int,
    previous: float | None,
    threshold: float,
) -> float | None:
    """The rank of a token that a rule wants back, lowest first; None where the rule keeps it."""
    best = best_token(probabilities, banned)
    if detector == "low_prob":
        return probabilities[token] if probabilities[token] < threshold else None
    if detector in ("t2t", "t2t_remask"):
        return 1 - probabilities[best] if probabilities[best] > threshold and best != token else None
    assert detector == "logit_diff"
    if previous is None:
        return None
    drop = previous - probabilities[token]
    return -drop if drop > threshold else None


def cap(
    wanted: dict[int, float], counts: dict[int, int], committed: int, per_position: int | None, ratio: float | None
) -> list[int]:
    """Token-to-Mask's two caps: so often a position, and floor(ratio * committed) a step, but at least one."""
    allowed = {i: rank for i, rank in wanted.items() if per_position is None or counts.get(i, 0) < per_position}
    order = sorted(allowed, key=lambda position: (allowed[position], position))
    return order if ratio is None else order[: max(1, math.floor(ratio * committed))]


def token_editing(
    model: Model,
    prompt: list[int],
    new: int,
    block_length: int,
    mask: int,
    banned: Sequence[int],
    detector: str,
    threshold: float,
    reveal_threshold: float,
    per_position: int | None = None,
    ratio: float | None = None,
    extra_steps: int = 16,
    most_steps: int = 200,
) -> States:
    """LLaDA2.x: forward, reveal above a threshold (M2T), then T2T or one of the Token-to-Mask detectors."""
    ids = [*prompt, *[mask] * new]
    states = [list(ids)]
    for begin in range(len(prompt), len(ids), block_length):
        block = range(begin, min(begin + block_length, len(ids)))
        counts: dict[int, int] = {}
        previous: dict[int, list[float]] = {}
        spare = 0
        while len(states) <= most_steps:
            open_masks = [position for position in block if ids[position] == mask]
            committed = [position for position in block if ids[position] != mask]
            scores = model(ids)
            p = {position: softmax(scores[position]) for position in block}
            answer = {position: best_token(scores[position], banned) for position in block}
            # M2T
            confidence = {position: p[position][answer[position]] for position in open_masks}
            sure = [position for position in open_masks if confidence[position] > reveal_threshold]
            following = list(ids)
            for position in sure or surest(confidence, 1):
                following[position] = answer[position]
            # revision of what was visible before
            wanted = {}
            for position in committed:
                token = ids[position]
                before = previous[position][token] if position in previous else None
                rank = detect(detector, p[position], banned, token, before, threshold)
                if rank is not None:
                    wanted[position] = rank
            fired = cap(wanted, counts, len(committed), per_position, ratio)
            for position in fired:
                following[position] = answer[position] if detector == "t2t" else mask
                counts[position] = counts.get(position, 0) + 1
            ids, previous = following, p
            states.append(list(ids))
            if not open_masks:
                spare += 1
                if not fired:
                    break
            if spare >= extra_steps and all(ids[position] != mask for position in block):
                break
    return states


def remedi_counts(length: int, steps: int) -> list[int]:
    """K_n: length // steps each, the last steps take the remainder, cumulated."""
    each = [length // steps] * steps
    for last in range(length % steps):
        each[steps - 1 - last] += 1
    return [sum(each[: step + 1]) for step in range(steps)]


def remedi(
    model: Model,
    policy: Model,
    prompt: list[int],
    new: int,
    block_length: int,
    steps_of_blocks: list[int],
    mask: int,
    banned: Sequence[int],
) -> States:
    """RemeDi: fill all masks, keep the K_n positions of highest policy score, mask the others. `policy`: N x 1."""
    ids = [*prompt, *[mask] * new]
    states = [list(ids)]
    for number, steps in enumerate(steps_of_blocks):
        begin = len(prompt) + number * block_length
        block = range(begin, min(begin + block_length, len(ids)))
        for kept in remedi_counts(len(block), steps):
            scores, worth = model(ids), policy(ids)
            filled = {i: best_token(scores[i], banned) if ids[i] == mask else ids[i] for i in block}
            keep = surest({i: worth[i][0] for i in block}, kept)
            for position in block:
                ids[position] = filled[position] if position in keep else mask
            states.append(list(ids))
    return states


def remdm_alpha(variant: str, time: float, window: tuple[float, float], plateau: float) -> float:
    """Expected visible share at `time`, from 1 (all masked) to 0."""
    if variant != "loop":
        return 1 - time
    on, off = window
    if time > on:  # a straight line from 0 at time 1 to the plateau
        return plateau * (1 - time) / (1 - on)
    if time > off:
        return plateau
    return 1 - (1 - plateau) * time / off


def remdm_probabilities(
    variant: str, step: int, steps: int, eta: float, window: tuple[float, float] = (0.55, 0.05), plateau: float = 0.9
) -> tuple[float, float]:
    """(sigma, probability that a mask is revealed) of step 0 .. steps - 1, in closed form."""
    time, following = 1 - step / steps, 1 - (step + 1) / steps
    now, then = (remdm_alpha(variant, t, window, plateau) for t in (time, following))
    most = min(1.0, (1 - then) / now) if now > 0 else float(then < 1)
    if variant == "cap":
        sigma = min(eta, most)
    elif variant == "rescale":
        sigma = eta * most
    elif variant == "conf":  # shared out by confidence; a mask's own is 0
        return most, (then - now) / (1 - now)
    else:
        inside = time <= window[0] and following >= window[1]
        sigma = min(eta, most) if inside else 0.0
    return sigma, (then - (1 - sigma) * now) / (1 - now)
