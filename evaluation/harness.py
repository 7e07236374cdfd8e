"""`dpad` as a model of lm-evaluation-harness.

    python -m dpad.evaluation.harness --model dpad --model_args bundle=bundles/tiny --tasks gsm8k

lm-evaluation-harness knows the models in its own table and those that imported code registers; it has no entry points
for other packages. So importing this module registers the model `dpad`; run as a program, it then calls the harness's
own command line with all its options. In Python, import it before `simple_evaluate`.
"""

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import dpad
from dpad.evaluation.arguments import check_names, decoding
from dpad.evaluation.finished import finished
from dpad.evaluation.likelihood import MOST_DRAWS, Estimate, estimates, whole
from dpad.evaluation.requests import Answer, Pair, Reader
from dpad.evaluation.scoring import cut
from dpad.evaluation.yaml_values import flag, integer, is_none
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.decoding.limits import WAITING
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.presets import name_of, schedule_named
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.errors import DpadError, InvalidRequest, MissingExtra
from dpad.runtime.extras import needed_by
from dpad.runtime.show import escaped

with needed_by("dpad.evaluation.harness", MissingExtra):
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model

_OWN = ("bundle", "engine", "threads", "mc_samples", "mc_seed", "check_greedy", "preset", "truncation")
_SCHEDULE = ("window", "k", "scale", "count")


@register_model("dpad")
class DpadLM(LM):
    """A bundle as a model of the harness; it serves all three kinds of requests.

    Model arguments are `bundle`, `engine`, `threads`, `mc_samples` (draws of a likelihood, 128 as in LLaDA's
    evaluation), `mc_seed`, `check_greedy`, `truncation`, `preset`, and all fields of `GenerationOptions`; `schedule`
    is a name, with parameters `window`, `k`, `scale` and `count`. Numbers may be text, and None is the default.
    `batch_size`, the harness's own option, is the number of requests that are given to the model at a time; its
    scheduler divides them into passes. `auto` is as many as may wait. `device`, which the harness always sets, is
    ignored: `engine` selects the device.

    All requests of a call are checked before the first is decoded. A request whose context is too long is refused or,
    with `truncation`, cut at its beginning, as in the harness's other models.

    A likelihood is the Monte-Carlo bound with one block as long as the text. Then there is no suffix, and no schedule
    applies: it is the number that LLaDA's evaluation reports.
    """

    def __init__(
        self,
        bundle: str | Path = "",
        engine: str | None = "auto",
        threads: int | str | None = 0,
        mc_samples: int | str | None = 128,
        mc_seed: int | str | None = 0,
        check_greedy: bool | str = True,
        batch_size: int | str | None = 1,
        max_batch_size: int | str | None = None,
        device: str | None = None,
        preset: str | None = None,
        truncation: bool | str = False,
        **options: Any,
    ) -> None:
        super().__init__()
        check_names(options, (*_OWN, *_SCHEDULE))
        if bundle in ("", None):
            raise InvalidRequest("no bundle is given; give --model_args bundle=DIR, made by dpad export")
        self.draws = _integer_or("mc_samples", mc_samples, 128)
        self.seed = _integer_or("mc_seed", mc_seed, 0)
        if not 1 <= self.draws <= MOST_DRAWS or self.seed < 0:
            raise InvalidRequest(
                f"mc_samples {self.draws} must be 1 to {MOST_DRAWS}, and mc_seed {self.seed} must be 0 or more"
            )
        self.check_greedy = flag("check_greedy", check_greedy, True)
        self.bundle = Bundle.open(Path(str(bundle)))
        name, number = "auto" if is_none(engine) else str(engine), _integer_or("threads", threads, 0)
        self.model = dpad.load(str(bundle), engine=name, threads=number, verify_hashes=False)
        self.contract = self.model.engine.contract
        self.options = self._options(preset, decoding(options))
        self.options.check(self.contract)
        most = WAITING if is_none(max_batch_size) else _at_least_one("max_batch_size", max_batch_size)
        self.batch_size = min(_batch_size(batch_size), most)
        self._reader = Reader(self.model, self.options, flag("truncation", truncation, False))

    def _options(self, preset: str | None, options: dict[str, Any]) -> GenerationOptions:
        parameters = {name: options.pop(name) for name in _SCHEDULE if name in options}
        if "schedule" in options or parameters:
            base = self.model.options(preset=preset).schedule
            name = options.get("schedule", name_of(base))
            options["schedule"] = schedule_named(name, base, **parameters) if isinstance(name, str) else name
        return self.model.options(preset=preset, **options)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts in the order of the requests, each cut before its stop strings.

        For the canvas `max_gen_toks` is rounded up to whole blocks, and the text is cut back to it; its default is the
        option `gen_length`. Tokens are sampled if the request has a temperature and `do_sample` is not False; a
        repeated request is sampled with the next seed. Raises an `InvalidRequest` with the number of a request that
        cannot be served, before anything is decoded.
        """
        asked = self._reader.read(requests, self._reader.answer)
        texts = [""] * len(requests)
        seen: Counter[tuple[object, ...]] = Counter()
        for index, (wanted, options, prompt) in enumerate(asked):
            same = (prompt.prompt_ids, wanted.tokens, repr(options), *wanted.stops)
            if options.temperature > 0 and seen[same]:
                asked[index] = Answer(wanted, options, replace(prompt, seed=options.seed + seen[same]))
            seen[same] += 1

        def sequences(index: int) -> list[Sequence]:
            return [Sequence(asked[index].row, asked[index].options, self.contract, index)]

        with self._told(len(requests)) as finished:
            for sequence in self._ended(len(asked), sequences):
                wanted, index = asked[sequence.index].wanted, sequence.index
                texts[index] = cut(self.model.codec.decode(sequence.token_ids()[: wanted.tokens]), wanted.stops)
                self._keep("generate_until", requests[index], texts[index])
                finished.append(index)
        return texts

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The bound of each continuation's log-likelihood, and whether greedy decoding gives that continuation.

        Greedy decoding fills a canvas as long as the continuation, rounded up to whole blocks for block-causal models,
        one token per step, the most confident first. `check_greedy=False` skips these steps and returns False.
        """
        pairs = self._reader.read(requests, self._reader.pair)
        return self._likelihoods("loglikelihood", requests, [[pair] for pair in pairs])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The bound of each text's log-likelihood; a text longer than a canvas is the sum of independent pieces."""
        texts = self._reader.read(requests, self._reader.pieces)
        return self._likelihoods("loglikelihood_rolling", requests, texts)

    @property
    def tokenizer_name(self) -> str:
        """The bundle's name and a digest of its tokenizer files; part of the harness's cache keys."""
        files = self.bundle.manifest.files
        digests = "".join(files[name].sha256 for name in self.bundle.manifest.tokenizer)
        return f"dpad-{self.bundle.manifest.name}-{hashlib.sha256(digests.encode()).hexdigest()[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for the results; raises `InvalidRequest` for a name, as a bundle has one template."""
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise InvalidRequest(
                f"a bundle has a single chat template, not one named {chat_template!r}; leave the name out"
            )
        self._reader.templated = True
        return self.model.codec.template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render the conversation with the bundle's template; raises `InvalidRequest` if it has none."""
        self._reader.templated = True
        return self.model.codec.render(chat_history, add_generation_prompt=add_generation_prompt)

    @contextmanager
    def _told(self, count: int) -> Iterator[list[int]]:
        """Give a list for the indices of finished requests; on an error or Ctrl-C, add a note on what was kept."""
        finished: list[int] = []
        try:
            yield finished
        except BaseException as error:
            kept = "kept: run the same again" if self._cached else "lost: with --use_cache FILE they would be kept"
            error.add_note(f"{len(finished)} of {count} answers were finished, and are {kept}")
            if self._cached and not isinstance(error, Exception):
                # An interrupt may leave a lock of the cache held, and closing the cache would wait for it for ever.
                self.cache_hook.dbdict.conn = None
            raise

    @property
    def _cached(self) -> bool:
        return self.cache_hook.dbdict is not None

    def _keep(self, kind: str, request: Instance, answer: object) -> None:
        """Write an answer to the harness's cache, if there is one, and to disk, so that it survives a kill."""
        self.cache_hook.add_partial(kind, request.args, answer)
        if self._cached:
            self.cache_hook.dbdict.commit()

    def _ended(self, count: int, sequences: Callable[[int], Iterable[Sequence]]) -> Iterator[Sequence]:
        """Run the `sequences` of each of `count` requests, whose index they have; yields them as they end."""
        for start in range(0, count, self.batch_size):
            batch = range(count)[start : start + self.batch_size]
            given = (sequence for index in batch for sequence in sequences(index))
            for sequence, _ in finished(self.model, given, lambda one: f"request {one.index + 1} of {count}"):
                yield sequence

    def _likelihoods(self, kind: str, requests: list[Instance], texts: list[list[Pair]]) -> list[Any]:
        """The bound of each text, summed over its pieces; for `loglikelihood` also whether greedy decoding gives it."""
        check_greedy = kind == "loglikelihood" and self.check_greedy

        def sequences(index: int) -> Iterator[Sequence]:
            for context, target in texts[index]:
                if check_greedy:
                    yield self._greedy(index, context, target)
                options = whole(self.contract, self.options, len(target))
                yield from estimates(self.contract, context, target, options, self.draws, (self.seed,), index)

        nats, greedy = [list[float]() for _ in texts], [False] * len(texts)
        answers: list[Any] = [0.0] * len(texts)  # stays 0 for a text without tokens
        left = [len(pieces) * (self.draws + check_greedy) for pieces in texts]
        with self._told(len(texts)) as finished:
            for sequence in self._ended(len(texts), sequences):
                index = sequence.index
                left[index] -= 1
                if isinstance(sequence, Estimate):
                    nats[index].append(sequence.nats)
                else:
                    target = texts[index][0].target
                    greedy[index] = bool(np.array_equal(sequence.canvas[sequence.prompt :][: len(target)], target))
                if not left[index]:
                    bound = -math.fsum(nats[index]) / self.draws
                    answers[index] = (bound, greedy[index]) if kind == "loglikelihood" else bound
                    self._keep(kind, requests[index], answers[index])
                    finished.append(index)
        return answers

    def _greedy(self, index: int, context: list[int], target: list[int]) -> Sequence:
        """A sequence that decodes as many tokens as `target` has, one per pass, the most confident first."""
        options = replace(whole(self.contract, self.options, len(target)), decoder="fixed", pace="even")
        options = replace(options, temperature=0.0, top_k=None, top_p=None)
        if not self.contract.block_causal:
            options = replace(options, cache="none")
        return Sequence(Request(tuple(context)), options, self.contract, index)


def _batch_size(asked: int | str | None) -> int:
    """Read a batch size; `auto` and `auto:4` are as many requests as may wait."""
    if isinstance(asked, str) and asked.partition(":")[0].strip() == "auto":
        return WAITING
    return 1 if is_none(asked) else _at_least_one("batch_size", asked)


def _integer_or(name: str, value: object, default: int) -> int:
    """Read an integer; None is `default`."""
    return default if is_none(value) else integer(name, value)


def _at_least_one(name: str, value: object) -> int:
    count = integer(name, value)
    if count < 1:
        raise InvalidRequest(f"{name} {count} must be 1 or more, or auto for as many as may wait")
    return count


if __name__ == "__main__":
    try:
        cli_evaluate()
    except DpadError as error:
        sys.exit("\n".join([escaped(f"dpad: {type(error).__name__}: {error}"), *getattr(error, "__notes__", ())]))
