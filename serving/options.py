"""Reads decoding options from a request body.

    options = decoding(model, CompletionBody(prompt=["What is"], max_tokens=60))
    model.options(**options).gen_length         # 64: whole blocks; the answer is cut to 60 tokens

Names, limits and defaults are those of `GenerationOptions` and of the bundle's presets; none is repeated here.
"""

import secrets
from typing import Any

from dpad.runtime.decoding.options import GenerationOptions, Options
from dpad.runtime.decoding.presets import read_schedule
from dpad.runtime.reader import Reader
from dpad.serving.schema import Sampling

_OWN = ("preset", "decoder", "threshold", "factor", "steps", "pace", "cache", "block_length", "top_k")


def decoding(model: Reader, body: Sampling) -> Options:
    """Keyword arguments of `model.astream`; raises `InvalidRequest`.

    A `top_p` of 1 is no filter. Without a seed, a request with a temperature gets a random one, and a greedy request
    gets 0, so that it gives the same answer each time.
    """
    given: dict[str, Any] = {
        name: value for name in (*_OWN, "temperature", "seed") if (value := getattr(body, name)) is not None
    }
    if body.top_p is not None and body.top_p < 1:
        given["top_p"] = body.top_p
    if body.schedule is not None:
        given["schedule"] = read_schedule({body.schedule: {}} if isinstance(body.schedule, str) else body.schedule)
    if (seconds := body.seconds_left) is not None:
        given["deadline"] = seconds
    options: Options = given  # type: ignore[assignment]
    resolved = model.options(**options)
    if body.most_tokens is not None:
        block = max(1, resolved.block_length)
        options["gen_length"] = -(-body.most_tokens // block) * block
    if "seed" not in options and resolved.temperature > 0:
        options["seed"] = secrets.randbits(31)
    return options


def most_tokens(body: Sampling, resolved: GenerationOptions) -> int:
    """Tokens that an answer may have."""
    return resolved.gen_length if body.most_tokens is None else body.most_tokens
