"""The reference of the block-causal families: transformers' model with the whole block-causal mask and no cache.

    result = expected("sdar", options, prompt)
    result.tokens, result.nfe, result.committed[position] -> pass

Every pass computes the whole canvas, with a mask in which position i attends position j if j's block is not after i's.
The runtime never builds that mask: it computes block after block and names the slots to attend.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from checkpoints import EOS, MASK, Weights, head_name, random_weights, raw_config
from peers import peer_model
from reference import Result, Rules, choose, fixed_budget

from dpad.runtime.decoding.options import GenerationOptions

LENGTH = {"sdar": 4, "fast_dllm": 8}  # tokens of a block
SHIFT = {"sdar": 0, "fast_dllm": 1}

Forward = Callable[[list[int]], torch.Tensor]  # canvas [N] -> logits [N, V]


def block_causal_mask(length: int, block: int) -> torch.Tensor:
    """An additive mask [1, 1, N, N]: 0 where a row may attend a column, else a number far below every score."""
    blocks = torch.arange(length) // block
    seen = blocks[:, None] >= blocks[None, :]
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]


def forward_with(raw: dict[str, Any], weights: Weights) -> Forward:
    """The peer with `weights`, called with the whole mask."""
    model, block = peer_model(raw, weights), raw.get("block_size") or raw["bd_size"]

    def forward(canvas: list[int]) -> torch.Tensor:
        with torch.no_grad():
            seen = block_causal_mask(len(canvas), block)
            hidden = model(input_ids=torch.tensor([canvas]), attention_mask=seen, use_cache=False)
        return hidden.last_hidden_state[0] @ weights[head_name(raw)].T

    return forward


@cache
def forward_of(family: str, sharpness: float = 4.0) -> Forward:
    """The peer of the bundle that `make_bundle(family, sharpness=sharpness)` writes."""
    raw = raw_config(family)
    return forward_with(raw, random_weights(raw, 0, sharpness=sharpness))


def decode(forward: Forward, prompt: tuple[int, ...], rules: Rules) -> Result:
    """Decode block after block, aligned at multiples of the block length, with the passes of the authors' code.

    Before a block is decoded, one pass computes the finished blocks whose final keys and values are missing: all of the
    prompt's blocks, then one block each time. With shift 1 its last row decides the next block's first token.
    """
    canvas = [*prompt, *[rules.mask] * rules.gen_length]
    result, length = Result(canvas), rules.block_length
    first = len(prompt) // length
    for block in range(first, -(-len(canvas) // length)):
        place = range(block * length, min((block + 1) * length, len(canvas)))
        result.nfe += block > 0
        if rules.shift and block and canvas[place[0]] == rules.mask:
            decide(forward(canvas), [place[0]], result, rules, 1)
        budget, step = fixed_budget(rules), 0
        while masked := [p for p in place if canvas[p] == rules.mask]:
            result.nfe += 1
            decide(forward(canvas), masked, result, rules, budget[step] if step < len(budget) else 1)
            step += 1
        if rules.early_termination and rules.eos in canvas[max(place[0], len(prompt)) : place[-1] + 1]:
            result.ended_early = place[-1] + 1 < len(canvas)
            canvas[place[-1] + 1 :] = [rules.eos] * (len(canvas) - place[-1] - 1)
            break
    return result


def decide(logits: torch.Tensor, masked: list[int], result: Result, rules: Rules, budget: int) -> None:
    """Commit some of the `masked` positions by the decoder's rule."""
    probabilities = {p: logits[max(p - rules.shift, 0)].double().softmax(dim=-1) for p in masked}
    chosen = choose(probabilities, rules, budget)
    result.most_at_once = max(result.most_at_once, len(chosen))
    for position in chosen:
        result.tokens[position] = int(probabilities[position].argmax())
        assert result.tokens[position] != rules.mask
        result.committed[position] = result.nfe


def rules_of(family: str, options: GenerationOptions, eos: int = EOS) -> Rules:
    """`options` as rules of the reference."""
    return Rules(
        gen_length=options.gen_length,
        block_length=options.block_length,
        kept=[],
        decoder=options.decoder,
        cache=options.cache,
        mask=MASK,
        eos=eos,
        shift=SHIFT[family],
        steps=options.steps or options.gen_length,
        threshold=options.threshold,
        factor=options.factor,
        early_termination=options.early_termination,
    )


@cache
def expected(family: str, options: GenerationOptions, prompt: tuple[int, ...], eos: int = EOS) -> Result:
    """The reference's result."""
    return decode(forward_of(family), prompt, rules_of(family, options, eos))
