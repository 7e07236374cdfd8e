"""Random calls of the public interface and random command lines end in a result or an error of this package."""

import asyncio
import io
import random
from collections import UserDict, deque
from collections.abc import Iterator
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import export, write_source
from click.testing import CliRunner
from fuzzing import Tally, fuzz

import dpad
from dpad import DiffusionModel, Explicit, Full, Gaussian, GenerationOptions, Request, Uniform
from dpad.cli import main

FIXED: dict[str, Any] = {"gen_length": 64, "cache": "dual", "temperature": 0.7, "seed": 3}
CODEC = ("encode", "encode_plain", "encode_rendered", "encode_chat", "render", "decode", "token_text")
OPTIONS = (*GenerationOptions.__annotations__, "preset")


class Raises:
    """Every operation on it raises."""

    def _fail(self, *arguments: Any, **more: Any) -> Any:
        raise ValueError("\x1b[31mno")

    __repr__ = __str__ = __len__ = __iter__ = __getitem__ = __index__ = __float__ = __int__ = _fail
    __bool__ = __contains__ = __call__ = __fspath__ = __lt__ = __gt__ = __array__ = tolist = _fail
    __eq__ = __hash__ = _fail  # type: ignore[assignment]


class Lies(list[Any]):
    """A list whose methods raise."""

    __len__ = __getitem__ = __repr__ = Raises._fail  # type: ignore[assignment]


class Endless(list[Any]):
    """A list whose iteration never ends."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield 5


class BadNumber(int):
    __int__ = __index__ = __float__ = __repr__ = __format__ = __str__ = Raises._fail  # type: ignore[assignment]


class BadText(str):
    __hash__ = __eq__ = __len__ = __repr__ = __format__ = __str__ = __contains__ = Raises._fail  # type: ignore[assignment]


class BadMapping(UserDict[Any, Any]):
    __getitem__ = __iter__ = __len__ = keys = items = values = __contains__ = Raises._fail  # type: ignore[assignment]


class Kind(IntEnum):
    FIVE = 5


class Schedule:
    """A caller's own schedule, which returns `kept`, or raises it if it is an error."""

    def __init__(self, kept: Any) -> None:
        self.kept = kept

    def check(self, gen_length: int, block_length: int) -> None:
        """Accept every canvas."""

    def keep(self, block: int, length: int, gen_length: int, rng: np.random.Generator) -> Any:
        if isinstance(self.kept, Exception):
            raise self.kept
        return self.kept


def deep(kind: Any = list) -> Any:
    value: Any = []
    for _ in range(5000):
        value = {"a": value} if kind is dict else [value]
    return value


def endless() -> Any:
    value: Any = [5]
    value.append(value)
    return value


def values() -> list[Any]:
    """The pool of values: typical mistakes of users, and values that only an attacker would pass."""
    tensors = (np.array, torch.tensor)
    numbers = [0, 1, -1, 2, 3, 5, 16, 32, 64, 96, 128, 10**30, 10**400, 10**5000, -(10**5000), 2**31, 2**63, 0.5, 0.9]
    numbers += [
        1.0,
        -0.0,
        float("nan"),
        float("inf"),
        -float("inf"),
        1e-320,
        True,
        False,
        1j,
        Decimal("0.5"),
        Kind.FIVE,
    ]
    numbers += [Fraction(1, 3), np.int8(-3), np.uint8(200), np.float16(0.5), np.float64("nan"), np.bool_(True)]
    numbers += [BadNumber(5), *(kind(5) for kind in tensors), *(kind(0.5) for kind in tensors), np.longdouble(0.5)]
    texts = ["", "w5", "w5 w6 <eos>", "<mask>", "none", "prefix", "dual", "DUAL", "extend", "blocks", "fixed", "margin"]
    texts += [
        "entropy",
        "factor",
        "noise",
        "even",
        "x" * 10**5,
        "\ud800",
        "\0",
        "\x1b[2J",
        "[[1]]",
        "32",
        BadText("w5"),
    ]
    texts += [b"w5", bytearray(b"w5"), memoryview(b"w5"), np.str_("dual"), np.array("w5")]
    lists = [[], [5], [5, 6, 7], (5, 6), deque([5]), range(5), range(10**12), [[5, 6]], [[]], [None], [5, "w5"], ["w5"]]
    lists += [
        Lies([5]),
        Endless([5, 6]),
        deep(),
        endless(),
        [10**5000],
        [float("inf")],
        [np.int8(5)],
        {5, 6},
        iter([5]),
    ]
    lists += [[True], [5.0], [-1], [2**64], [127], np.zeros((2, 2)), np.array([5.5]), np.array([], int), [[[5]]]]
    lists += [kind(value) for kind in tensors for value in ([5, 6], [[5, 6]], [[[5]]], [True])]
    lists += [np.array([5, None], object), np.array(["w5"]), (i for i in [5]), {}.keys(), [Request((5,))]]
    messages = [{"role": "user", "content": "w5"}, {"role": "user"}, {"input_ids": [[5]]}, {1: 2}, {"a": deep(dict)}]
    messages += [[message] for message in messages] + [UserDict(role="user", content="w5"), BadMapping(role="a")]
    messages += [[BadMapping()], [{"role": "user", "content": ["w5"]}], [{"role": 10**5000, "content": None}]]
    messages += [[{Raises: "w5", "role": BadText("u"), "content": "w5"}], {i: i for i in range(10**4)}]
    schedules = [Full(), Gaussian(), Gaussian, Uniform(3), Explicit(((), (), (), ())), Gaussian(window=10**6)]
    schedules += [Explicit(((0, 5), ())), Explicit(((3,), (99,)))]
    kept = [None, 5, "ab", [3, 1], [0, 0], [-1], [10**6], [0.5], [True], deep(), [[0]], Raises(), [None], [0], []]
    schedules += [
        Schedule(answer) for answer in (*kept, ValueError("\x1b"), RecursionError(), MemoryError(), KeyError(5))
    ]
    others = [None, object(), object, Raises(), Raises, len, Path("w5"), io.StringIO("5"), type, ..., NotImplemented]
    others += [Request((5, 6)), Request((5,), suffix_ids=(6,), seed=4), Request((999,)), GenerationOptions()]
    return [*numbers, *texts, *lists, *messages, *schedules, *others]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    return export(write_source(folder / "source"), folder / "bundle").directory


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[DiffusionModel]:
    with dpad.load(bundle) as opened:
        yield opened


def some_call(model: DiffusionModel, bundle: Path, pool: list[Any], rng: random.Random) -> tuple[str, Any]:
    """A random call with values of the pool in its parameters, and its name."""

    def nasty() -> Any:
        return rng.choice(pool)

    def options() -> dict[str, Any]:
        count = rng.choice([0, 1, 1, 2, 3])
        return {"gen_length": rng.choice([32, 64])} | {name: nasty() for name in rng.sample(OPTIONS, count)}

    def prompt() -> Any:
        return rng.choice([[5, 6, 7], "w5 w6", nasty(), nasty()])

    codec = model.codec
    calls = {
        "generate": lambda: model.generate(prompt(), raw=rng.choice([False, True, nasty()]), **options()),
        "generate_batch": lambda: model.generate_batch(rng.choice([[prompt(), prompt()], nasty()]), **options()),
        "stream": lambda: list(model.stream(prompt(), **options())),
        "stream_batch": lambda: list(model.stream_batch(rng.choice([[prompt()], nasty()]), **options())),
        "agenerate": lambda: asyncio.run(model.agenerate(prompt(), raw=rng.choice([False, nasty()]), **options())),
        "limits": lambda: [DiffusionModel(model.engine, None, max_running=nasty(), max_waiting=nasty())],
        "request": lambda: model.request(prompt(), suffix=rng.choice([None, "w5", nasty()])),
        "on_step": lambda: model.generate([5], on_step=rng.choice([None, 5, "len", [], deep()]), gen_length=32),
        "options": lambda: model.options(**options()),
        "check_size": lambda: model.check_size(nasty(), nasty()),
        "Explicit": lambda: Explicit(nasty(), nasty(), nasty()).check(64, 32),
        "from_positions": lambda: Explicit.from_positions(rng.choice([nasty(), [nasty()]]), nasty(), nasty()),
        "Gaussian": lambda: Gaussian(nasty(), nasty(), nasty()).check(64, 32),
        "Uniform": lambda: Uniform(nasty(), nasty()).check(64, 32),
        "Request": lambda: model.generate(Request(nasty(), nasty(), nasty(), nasty()), gen_length=32),
        "Request of ids": lambda: model.generate(Request((5, 6), (), None, nasty()), gen_length=64),
        "load": lambda: dpad.load(
            rng.choice([bundle, nasty()]), **{rng.choice(["engine", "threads", "slots", "x"]): nasty()}
        ),
        "verify": lambda: dpad.load(bundle, engine="none", verify_hashes=nasty()),
        "unknown": lambda: model.generate([5], **{str(rng.choice(["top", "\x1b", "seed ", "K" * 9999])): nasty()}),
        "encode": lambda: codec.encode(rng.choice(["w5", "\ud800", "", "\0" * 99])),
        "codec": lambda: getattr(codec, rng.choice(CODEC))(nasty()),
        "token_text": lambda: codec.token_text(rng.choice([0, -1, 2**31, 2**64, 10**5000])),
    }
    name = rng.choice(list(calls))
    return name, calls[name]


@fuzz(short=800, long=40_000)
def test_calls_of_the_public_interface(mutants: int, tally: Tally, model: DiffusionModel, bundle: Path) -> None:
    """Fails if any value in any parameter raises another error, hangs, or changes later results of the model."""
    before, pool = model.generate([5, 6, 7], **FIXED).canvas.tolist(), values()
    for number in range(mutants):
        name, call = some_call(model, bundle, pool, random.Random(number))
        result = tally.attempt(f"{name}, call {number}", call)
        if isinstance(result, DiffusionModel):
            result.close()
    assert model.generate([5, 6, 7], **FIXED).canvas.tolist() == before


ARGUMENTS = (
    *("--help", "--version", "--json", "-", "--ids", "--positions", "--raw", "--parse-special", "--suffix", "--seed"),
    *(
        "--cache",
        "--decoder",
        "--steps",
        "--gen-length",
        "--block-length",
        "--temperature",
        "--top-k",
        "--top-p",
        "--k",
    ),
    *("--window", "--scale", "--count", "--schedule", "--preset", "--engine", "--threads", "--show-steps", "--pace"),
    *("BUNDLE", "FOLDER", "/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/nowhere", "w5", "5 6", "[5]"),
    *("[[40]]", "[]", "{}", "[[1e999]]", "[" * 9999, "-1", "0", "1", "32", "64", "nan", "inf", "1e999", "9" * 400),
    *(
        "9" * 5000,
        "none",
        "dual",
        "fixed",
        "auto",
        "torch",
        "\udcff",
        "\x1b[2J",
        "x" * 10**5,
        "",
        "--",
        "=",
        "--x=",
    ),
)


@fuzz(short=60, long=4_000)
def test_command_lines(mutants: int, tally: Tally, bundle: Path) -> None:
    """Fails if a command line does not end in a result, one error or the usage, or prints control characters."""
    places = {"BUNDLE": str(bundle), "FOLDER": str(bundle.parent)}
    for number in range(mutants):
        rng = random.Random(number)
        words = [places.get(word, word) for word in rng.choices(ARGUMENTS, k=rng.randrange(5))]
        command = [
            rng.choice(["generate", "generate", "inspect", "nonsense"]),
            *rng.choice([[str(bundle)], []]),
            *words,
        ]

        def run(command: list[str] = command) -> int:
            ran = CliRunner().invoke(main, command, input="5 6", catch_exceptions=False)
            assert ran.exit_code in (0, 1, 2), command
            assert ran.exit_code != 1 or ran.stderr.count("dpad: ") >= 1
            assert "\x1b" not in ran.stderr
            return ran.exit_code

        tally.attempt(f"{command}", run)
