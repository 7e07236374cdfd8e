"""`dpad` as a model of lm-evaluation-harness.

    python -m dpad.evaluation.harness --model dpad --model_args bundle=bundles/tiny --tasks gsm8k

lm-evaluation-harness finds models by an import or in its own table; it has no entry points for others. So
this module registers the model `dpad` when it is imported, and run as a program it then hands over to the
harness's own command line with all its options. In Python, import it before `simple_evaluate`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dpad
from dpad.evaluation.likelihood import bounds, whole
from dpad.evaluation.scoring import cut
from dpad.runtime.bundle import Bundle
from dpad.runtime.errors import InvalidRequest, MissingExtra
from dpad.runtime.extras import needed_by
from dpad.runtime.presets import name_of, schedule_named
from dpad.runtime.request import Request

with needed_by("dpad.evaluation.harness", MissingExtra):
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one given counts
_SAMPLING = ("temperature", "top_k", "top_p")
_KNOWN = {*_LENGTHS, *_SAMPLING, "until", "do_sample"}


@register_model("dpad")
class DpadLM(LM):
    """A bundle behind the harness's three kinds of request.

    Model arguments are `bundle`, `engine`, `threads`, `mc_samples` (draws of a likelihood, 128 as in LLaDA's
    evaluation), `mc_seed`, `check_greedy`, `preset`, and all fields of `GenerationOptions`, `schedule` by its name
    with `window`, `k`, `scale` and `count`. `batch_size` is the harness's own option; `auto` is the most that
    the bundle takes. `device`, which the harness always sets, means nothing here: `engine` decides.

    A likelihood is the Monte-Carlo bound with one block as long as the text, so no suffix and no schedule
    takes part: the number LLaDA's evaluation reports.
    """

    def __init__(
        self,
        bundle: str,
        engine: str = "auto",
        threads: int = 0,
        mc_samples: int = 128,
        mc_seed: int = 0,
        check_greedy: bool = True,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        preset: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.bundle = Bundle.open(Path(bundle))
        self.model = dpad.load(bundle, engine=engine, threads=threads, verify_hashes=False)
        self.contract = self.model.engine.contract
        parameters = {name: options.pop(name) for name in ("window", "k", "scale", "count") if name in options}
        if "schedule" in options or parameters:
            base = self.model.options(preset=preset).schedule
            options["schedule"] = schedule_named(options.get("schedule", name_of(base)), base, **parameters)
        self.options = self.model.options(preset=preset, **options)
        self.options.check(self.contract)
        self.draws, self.seed, self.check_greedy = mc_samples, mc_seed, check_greedy
        most = self.contract.max_batch
        wanted = most if str(batch_size).startswith("auto") else int(batch_size)
        self.batch_size = min(wanted, max_batch_size or most, most)
        self._templated = False

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts in the order of the requests, each cut before its stop strings.

        `max_gen_toks` is rounded up to whole blocks for the canvas and the text cut back to it; without
        it the option `gen_length` counts. Sampling needs `do_sample`, or a temperature without it.
        Unknown generation arguments raise `InvalidRequest`.
        """
        texts = [""] * len(requests)
        wanted = [_Wanted(request.args[1], self.options.gen_length) for request in requests]
        length = self.options.block_length
        for rows in _groups([(each.tokens, each.sampling) for each in wanted], self.batch_size):
            first = wanted[rows[0]]
            options = dict(first.sampling, gen_length=-(-first.tokens // length) * length)
            prompts = [Request(tuple(self._encode(requests[row].args[0]))) for row in rows]
            answers = self.model.generate_batch(prompts, **(vars(self.options) | options))
            for row, answer in zip(rows, answers):
                text = self.model.codec.decode(answer.token_ids[: first.tokens])
                texts[row] = cut(text, wanted[row].stops)
                self.cache_hook.add_partial("generate_until", requests[row].args, texts[row])
        return texts

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The bound of each continuation's log-likelihood, and whether greedy decoding writes just that.

        Greedy decoding fills a canvas as long as the continuation (in whole blocks, if these are the model's), the
        surest token first, one a step;
        `check_greedy=False` saves these steps and answers False.
        """
        answers = []
        for request in requests:
            context, target = self._pair(*request.args)
            greedy = self.check_greedy and self._is_greedy(context, target)
            answers.append((self._loglikelihood(context, target), greedy))
            self.cache_hook.add_partial("loglikelihood", request.args, answers[-1])
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The bound of each text's log-likelihood; longer ones in pieces as long as a canvas, each on its own."""
        answers = []
        for request in requests:
            target = self.model.codec.encode_plain(request.args[0])
            start = self.model.codec.encode("")  # what the tokenizer puts before every text
            size = self.contract.max_length - len(start)
            pieces = [target[at : at + size] for at in range(0, len(target), size)]
            answers.append(sum(self._loglikelihood(start, piece) for piece in pieces))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answers[-1])
        return answers

    @property
    def tokenizer_name(self) -> str:
        """Name and digest of the tokenizer's files; part of the harness's cache keys."""
        files = self.bundle.manifest.files
        digests = "".join(files[name].sha256 for name in self.bundle.manifest.tokenizer)
        return f"dpad-{self.bundle.manifest.name}-{hashlib.sha256(digests.encode()).hexdigest()[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source as the results record it; a template of another name does not exist."""
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise InvalidRequest(f"a bundle has one chat template and none named {chat_template!r}")
        self._templated = True
        return self.model.codec.template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the bundle's template writes it; raises `InvalidRequest` where it has none."""
        self._templated = True
        return self.model.codec.render(chat_history, add_generation_prompt=add_generation_prompt)

    def _encode(self, text: str) -> list[int]:
        """Token ids of a context; a templated one holds its special tokens already."""
        return self.model.codec.encode_rendered(text) if self._templated else self.model.codec.encode(text)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both; spaces at the context's end belong to the continuation.

        Both are encoded together and split behind the context's tokens, unless the two do not part there.
        """
        stem = context.rstrip()
        continuation = context[len(stem) :] + continuation
        before, together = self._encode(stem), self._encode(stem + continuation)
        if together[: len(before)] == before and len(together) > len(before):
            return before, together[len(before) :]
        return before, self.model.codec.encode_plain(continuation)

    def _loglikelihood(self, context: Sequence[int], target: Sequence[int]) -> float:
        options = whole(self.contract, self.options, len(target))
        seed = (self.seed,)
        return -float(bounds(self.model.engine, context, target, options, self.draws, seed).mean())

    def _is_greedy(self, context: Sequence[int], target: Sequence[int]) -> bool:
        options = vars(whole(self.contract, self.options, len(target)))
        options |= {"decoder": "fixed", "pace": "even", "temperature": 0.0, "top_k": None, "top_p": None}
        if not self.contract.block_causal:
            options["cache"] = "none"
        answer = self.model.generate(Request(tuple(context)), **options)
        return bool(np.array_equal(answer.canvas[len(context) :][: len(target)], target))


class _Wanted:
    """Generation arguments of one request, read: `tokens`, `sampling` options and `stops`."""

    def __init__(self, arguments: dict[str, Any], default_tokens: int) -> None:
        if unknown := sorted(arguments.keys() - _KNOWN):
            raise InvalidRequest(
                f"generation argument {unknown[0]!r} is not known; known are {', '.join(sorted(_KNOWN))}"
            )
        self.tokens = next((int(arguments[name]) for name in _LENGTHS if arguments.get(name)), default_tokens)
        until = arguments.get("until") or []
        self.stops = [until] if isinstance(until, str) else list(until)
        given = {name: arguments[name] for name in _SAMPLING if arguments.get(name) is not None}
        sampled = arguments.get("do_sample", True) and given.get("temperature", 0) > 0
        self.sampling = given if sampled else {"temperature": 0.0, "top_k": None, "top_p": None}


def _groups(keys: Sequence[object], size: int) -> Iterator[list[int]]:
    """Indices of equal keys together, at most `size` at once."""
    left = list(range(len(keys)))
    while left:
        same = [index for index in left if keys[index] == keys[left[0]]][:size]
        left = [index for index in left if index not in same]
        yield same


if __name__ == "__main__":
    cli_evaluate()
