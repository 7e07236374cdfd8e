"""Mutants of tokenizer.json, and a process that tries them: python tokenizer_mutants.py FOLDER, numbers on stdin.

    mutant(7)                        # the seventh mutant, which is always the same
    fates(range(100), folder)        # the outcome of each: "used", an error of this package, or how its process died

After a mutant that crashes its process, the next one gets a new process.
"""

import json
import random
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

SECONDS = 30.0  # limit for a mutant
MEMORY = 4 << 30
TEXTS = ("It's 12 + 345 = \u00e9e\u0301 \u6f22\u5b57 \U0001f600 <s>", "aaaa" * 40, " \n\t" * 30, "a b " * 40 + "!", "")
TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
LETTERS = [*"abcdefghi 0123456789.,!'", "\u0120", "\u2581", "\u00e9", "\u6f22", "<unk>", "<s>"]
WORDS = [*LETTERS, "ab", "bc", "abc", "##a", "##ab", "a</w>", "aa", "aaaa", "<0x41>"]
BPE = {"type": "BPE", "vocab": {w: i for i, w in enumerate(WORDS)}, "merges": [["a", "b"], ["b", "c"], ["a", "bc"]]}
MODELS: list[dict[str, Any]] = [
    BPE | {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True},
    BPE | {"merges": ["a b", "a a", "aa aa"], "end_of_word_suffix": "</w>"},
    BPE | {"merges": [["a", "##a"]], "continuing_subword_prefix": "##", "unk_token": "<unk>"},
    {"type": "WordLevel", "vocab": BPE["vocab"], "unk_token": "<unk>"},
    {"type": "WordPiece", "vocab": BPE["vocab"], "unk_token": "<unk>", "continuing_subword_prefix": "##"}
    | {"max_input_chars_per_word": 100},
    {"type": "Unigram", "unk_id": len(LETTERS) - 2, "vocab": [[w, -float(i)] for i, w in enumerate(WORDS)]}
    | {"byte_fallback": False},
]
PATTERNS: list[Any] = [
    {"String": " "},
    {"String": "a"},
    {"String": ""},
    {"Regex": r"\s+(?!\S)|\w+|[^\s\w]+"},
    {"Regex": ""},
    {"Regex": "(a+)+$"},
    {"Regex": r"(?<x>a|b\g<x>c)"},
    {"Regex": r"(?:a?){1,99}a{3,}"},
]
NORMALIZERS: list[dict[str, Any]] = [
    *({"type": kind} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt", "StripAccents", "ByteLevel")),
    {"type": "Strip", "strip_left": True, "strip_right": False},
    {"type": "Prepend", "prepend": "\u2581"},
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    | {"lowercase": True},
    {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAABhYgBj"},
    *({"type": "Replace", "pattern": pattern, "content": "aa"} for pattern in PATTERNS),
]
SPLITTERS: list[dict[str, Any]] = [
    *({"type": kind} for kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "UnicodeScripts")),
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
    {"type": "CharDelimiterSplit", "delimiter": "a"},
    {"type": "Punctuation", "behavior": "Contiguous"},
    {"type": "Digits", "individual_digits": True},
    {"type": "FixedLength", "length": 3},
    *({"type": "Split", "pattern": p, "behavior": "Isolated", "invert": i % 2 > 0} for i, p in enumerate(PATTERNS)),
]
DECODERS: list[dict[str, Any]] = [
    SPLITTERS[4],
    SPLITTERS[5],
    *({"type": kind} for kind in ("ByteFallback", "Fuse")),
    {"type": "BPEDecoder", "suffix": "</w>"},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "CTC", "pad_token": "<s>", "word_delimiter_token": "|", "cleanup": True},
    {"type": "Strip", "content": "a", "start": 1, "stop": 0},
    *({"type": "Replace", "pattern": pattern, "content": " "} for pattern in PATTERNS),
]
PIECES = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
PROCESSORS: list[dict[str, Any]] = [
    SPLITTERS[4],
    {"type": "BertProcessing", "sep": ["<s>", 3], "cls": ["<unk>", 4]},
    {"type": "RobertaProcessing", "sep": ["<s>", 3], "cls": ["<s>", 4], "trim_offsets": True, "add_prefix_space": True},
    {"type": "TemplateProcessing", "single": PIECES, "pair": [*PIECES, {"Sequence": {"id": "B", "type_id": 1}}]}
    | {"special_tokens": {"<s>": {"id": "<s>", "ids": [len(LETTERS) - 1], "tokens": ["<s>"]}}},
]
SECTIONS = {
    "normalizer": (NORMALIZERS, "normalizers"),
    "pre_tokenizer": (SPLITTERS, "pretokenizers"),
    "decoder": (DECODERS, "decoders"),
    "post_processor": (PROCESSORS, "processors"),
}
HUGE = (0, 1, -1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, 1e308, 10**30, 0.5)
TEXT = ("", "a", "##", "\u00e9", "\u2581", "<s>", "a" * 300, "a" * 70_000, "\x00", "\U0001f600", "(a|b)*", "[[", "\\1")


def mutant(number: int) -> str:
    """The text of a tokenizer.json with matching parts, some of which are changed."""
    rng = random.Random(number)
    data = _whole(rng)
    for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
        _change(data, rng)
    text = json.dumps(data)
    if rng.random() < 0.03:
        text = text.replace('"type"', rng.choice(('"tipe"', '"type": "BPE", "type"')), rng.randrange(4))
    return text


def _whole(rng: random.Random) -> dict[str, Any]:
    model = json.loads(json.dumps(rng.choice(MODELS)))
    data: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "model": model}
    data["added_tokens"] = [{"id": len(LETTERS) - 1, "content": "<s>"} | TOKEN]
    if rng.random() < 0.3:
        data["added_tokens"].append({"id": len(WORDS), "content": "xyz"} | TOKEN | {"normalized": True})
    for name, (parts, inner) in SECTIONS.items():
        data[name] = _section(rng, parts, inner)
    return data


def _section(rng: random.Random, parts: list[dict[str, Any]], inner: str, depth: int = 0) -> Any:
    drawn = rng.random()
    if drawn < 0.25 and not depth:
        return None
    if drawn < 0.65 or depth > 2:
        return json.loads(json.dumps(rng.choice(parts)))
    kind, many = "Sequence", rng.choice((1, 2, 2, 3, 3, 30) if depth == 0 else (0, 1, 2))
    if rng.random() < 0.2:
        return {"type": kind, inner: [_section(rng, parts, inner, 1)] * many}
    return {"type": kind, inner: [_section(rng, parts, inner, depth + 1) for _ in range(many)]}


def _change(data: dict[str, Any], rng: random.Random) -> None:
    """Change one value: another of its kind or of another kind, removed, duplicated, moved, or nested."""
    places = [place for place in _places(data) if place[1] not in ("version",)]
    inside, key = rng.choice(places)
    old = inside[key]
    drawn = rng.random()
    if drawn < 0.35:
        inside[key] = _other(old, rng)
    elif drawn < 0.5:
        inside[key] = rng.choice([None, True, [], {}, *HUGE, *TEXT])
    elif drawn < 0.6:
        del inside[key]
    elif drawn < 0.7 and isinstance(inside, list):
        inside.extend([old] * rng.choice((1, 2, 50)))
    elif drawn < 0.8:
        other, name = rng.choice(places)
        if name in (other if isinstance(other, dict) else range(len(other))):
            inside[key] = json.loads(json.dumps(other[name]))
    elif drawn < 0.9:
        parts, inner = rng.choice(list(SECTIONS.values()))
        inside[key] = _section(rng, parts, inner)
    else:
        for _ in range(rng.choice((1, 5, 40))):
            old = {"type": "Sequence", rng.choice(list(SECTIONS.values()))[1]: [old]}
        inside[key] = old


def _other(old: Any, rng: random.Random) -> Any:
    if isinstance(old, bool):
        return not old
    if isinstance(old, (int, float)):
        return rng.choice([old + 1, old - 1, old * 1000, *HUGE])
    if isinstance(old, str):
        drawn = rng.choice(list(SECTIONS.values()))[0]
        return rng.choice([old * 2, old[:-1], old + "\u00e9", rng.choice(drawn)["type"], rng.choice(WORDS), *TEXT])
    if isinstance(old, list):
        return rng.sample(old, len(old)) if rng.random() < 0.5 else old[: len(old) // 2]
    return old


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield value, key
        if key != "vocab" or not isinstance(inner, (dict, list)):
            yield from _places(inner)
        else:  # a token is as likely to be changed as a setting
            yield from list(_places(inner))[:3]


def fates(numbers: Iterable[int], folder: Path) -> Iterator[tuple[int, str]]:
    """The outcome of each mutant, in order."""
    left = list(numbers)
    while left:
        with (folder / "stderr").open("w") as errors, _start(folder, errors) as process:
            assert process.stdin and process.stdout
            for number in left:
                process.stdin.write(f"{number}\n")
                process.stdin.flush()
                if not (line := process.stdout.readline()):
                    break
                yield number, line.strip()
            else:
                return
            code = process.wait()
        words = (folder / "stderr").read_text(errors="replace").split("\n")[-4:]
        yield number, f"died with {code}: {' '.join(words)}"
        left = left[left.index(number) + 1 :]


def _start(folder: Path, errors: IO[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)


def _serve(folder: Path) -> None:
    import signal

    from dpad.runtime.errors import DpadError
    from dpad.runtime.text.codec import TextCodec

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside the library
    for line in sys.stdin:
        (folder / "tokenizer.json").write_text(mutant(int(line)))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            codec = TextCodec.open(folder)
            for text in TEXTS:
                try:
                    codec.decode(codec.encode(text))
                    codec.encode_rendered(text)
                except DpadError:
                    pass
            for number in range(codec.size + 1):
                codec.token_text(number)
            fate = "used"
        except DpadError as error:
            fate = f"{type(error).__name__} {str(error)!r}"
        except BaseException as error:  # errors that are not this package's are reported too
            fate = f"untyped {type(error).__name__} {str(error)!r}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.write(f"{fate[:300]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
