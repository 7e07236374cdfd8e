"""The published decoder, written simply: one sequence, whole canvases, no code shared with the package.

    result = decode(model, prompt, rules)
    result.tokens, result.nfe, result.committed[position] -> step

It follows LLaDA's and Dream's sampling with DPad's dropout and Fast-dLLM's caches, as described in the papers. Only the
network comes from the package; the attention is written here. A cache is a table of keys and values by canvas position.
"""

import math
from dataclasses import dataclass, field

import torch

from dpad.models.checkpoint.checkpoint import Model

Rows = dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]  # (layer, position) -> key, value [G, D]


@dataclass(frozen=True)
class Rules:
    """How to decode. `kept[b]` are the suffix positions, on the canvas, that dropout keeps for block b."""

    gen_length: int
    block_length: int
    kept: list[list[int]]
    decoder: str
    cache: str
    mask: int
    eos: int
    shift: int
    steps: int = 0
    pace: str = "even"
    threshold: float = 0.9
    factor: float = 1.0
    early_termination: bool = True


@dataclass
class Result:
    """The final canvas, the number of forward passes, and the pass (from 1) in which each position was committed."""

    tokens: list[int]
    nfe: int = 0
    committed: dict[int, int] = field(default_factory=dict)
    most_at_once: int = 0
    ended_early: bool = False


def decode(
    model: Model,
    prompt: list[int],
    rules: Rules,
    suffix: list[int] | None = None,
    given: dict[int, int] | None = None,
) -> Result:
    """Fill gen_length masks between `prompt` and `suffix`, block by block, except for tokens that are `given`."""
    suffix, given = suffix or [], given or {}
    canvas = prompt + [given.get(place, rules.mask) for place in range(rules.gen_length)] + suffix
    result = Result(canvas)
    gen_end = len(prompt) + rules.gen_length
    stored: Rows = {}
    for block in range(rules.gen_length // rules.block_length):
        start = len(prompt) + block * rules.block_length
        end = start + rules.block_length
        told = {len(prompt) + place for place in given if len(prompt) + place >= end}
        kept = sorted({*rules.kept[block]} | told) + list(range(gen_end, len(canvas)))
        decode_block(model, result, rules, start, end, kept, stored)
        if rules.early_termination and rules.eos in canvas[start:end]:
            result.ended_early = end < gen_end
            canvas[end:gen_end] = [rules.eos] * (gen_end - end)
            break
    return result


def decode_block(
    model: Model, result: Result, rules: Rules, start: int, end: int, kept: list[int], stored: Rows
) -> None:
    """Run steps until the block [start, end) holds no mask; `stored` is the cache, which later blocks reuse."""
    canvas = result.tokens
    retained = list(range(end)) + kept
    budget = fixed_budget(rules)
    step, extends = 0, rules.cache == "extend" and bool(stored)
    while rules.mask in canvas[start:end]:
        queries = retained
        if step == 0 and extends:
            queries = [p for p in retained if p >= start - rules.block_length - rules.shift]
        if step > 0 and rules.cache != "none":
            first = max(start - rules.shift, 0)
            queries = [p for p in retained if first <= p < end or (p >= end and rules.cache == "prefix")]
        logits, fresh = forward(model, canvas, queries, retained, stored)
        if step == 0 and rules.cache != "none":
            stored.update(fresh)
        masked = [p for p in range(start, end) if canvas[p] == rules.mask]
        probabilities = {p: logits[max(p - rules.shift, 0)].double().softmax(dim=-1) for p in masked}
        chosen = choose(probabilities, rules, budget[step] if step < len(budget) else 1)
        result.nfe += 1
        result.most_at_once = max(result.most_at_once, len(chosen))
        for position in chosen:
            token = int(probabilities[position].argmax())
            assert token != rules.mask, "the reference does not say what a mask that predicts itself means"
            canvas[position] = token
            result.committed[position] = result.nfe
        step += 1


def fixed_budget(rules: Rules) -> list[int]:
    """The number of commits of each step: LLaDA's masks // steps, with the remainder in the first steps, or Dream's."""
    if rules.decoder in ("threshold", "factor"):
        return []
    steps = rules.steps // (rules.gen_length // rules.block_length)
    if rules.pace == "noise":
        return [count for count in noise_budget(rules.block_length, steps) if count]
    base, remainder = rules.block_length // steps, rules.block_length % steps
    return [base + 1 if step < remainder else base for step in range(steps)]


def noise_budget(masks: int, steps: int) -> list[int]:
    """The number of commits of each step by Dream's sampler, computed in float32; it can be 0."""
    times, left, budget = torch.linspace(1, 1e-3, steps + 1), torch.tensor(float(masks)), []
    for i in range(steps):
        budget.append(int(left * (1 - times[i + 1] / times[i])) if i < steps - 1 else int(left))
        left -= budget[-1]
    return budget


def choose(probabilities: dict[int, torch.Tensor], rules: Rules, budget: int) -> list[int]:
    """The positions committed in this step; in a tie the lower position is first."""
    confidence = {p: float(row.max()) for p, row in probabilities.items()}
    if rules.decoder == "entropy":
        score = {p: float((row * row.clamp(min=1e-300).log()).sum()) for p, row in probabilities.items()}
    elif rules.decoder == "margin":
        score = {p: float(row.sort().values[-1] - row.sort().values[-2]) for p, row in probabilities.items()}
    else:
        score = confidence
    order = sorted(score, key=lambda p: (-score[p], p))
    if rules.decoder == "threshold":
        return [p for rank, p in enumerate(order) if rank == 0 or confidence[p] >= rules.threshold]
    if rules.decoder == "factor":
        accepted = 0
        while accepted < len(order) and (accepted + 2) * (1 - confidence[order[accepted]]) < rules.factor:
            accepted += 1
        return order[: max(accepted, 1)]
    return order[: min(budget, len(order))]


def forward(
    model: Model, canvas: list[int], queries: list[int], retained: list[int], stored: Rows
) -> tuple[dict[int, torch.Tensor], Rows]:
    """Logits by query position, and the computed keys and values.

    A query attends every retained position. Keys and values of retained positions that are not queries come from
    `stored`.
    """
    fresh: Rows = {}

    def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        for row, position in enumerate(queries):
            fresh[layer, position] = key[0, row], value[0, row]
        rows = [fresh.get((layer, p)) or stored[layer, p] for p in retained]
        keys, values = (torch.stack(part) for part in zip(*rows))  # [S, G, D]
        return full_attention(query[0], keys, values)[None]

    ids = torch.tensor([[canvas[p] for p in queries]])
    with torch.no_grad():
        hidden = model(ids, torch.tensor([queries]), attend)
        logits = model.logits(hidden)[0]
    return dict(zip(queries, logits)), fresh


def full_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Bidirectional attention: query [Q, H, D], keys and values [S, G, D] -> [Q, H, D]."""
    group = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,shd->hqs", query, keys) / math.sqrt(query.shape[-1])
    return torch.einsum("hqs,shd->qhd", scores.softmax(dim=-1), values)
