"""Layouts of a checkpoint's tokenizer files, with one small vocabulary, and the tokenizers that an export makes.

source = write(tmp_path / "source", LAYOUTS["parts, added_tokens.json"])
codec = place(checkpoint, source)
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from dpad.export.progress import Progress
from dpad.export.tokenizer.place import place_tokenizer
from dpad.export.tokenizer.vocabulary_files import QWEN
from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime.text.codec import TextCodec

CORPUS = ["How many books? 12 + 345 = 357, isn't it?", "Tom's 6 books\n\nEmma's 4; day by day", "# ## ### 2024-01-01"]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>")
NAMED = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "mask_token": "<|mask|>"}
TEXTS = (
    "How many books? It's 12 + 345 = 357.",
    "  two  spaces \n\n and\r\nlines\t.  ",
    "\u00dcber na\u00efve e\u0301 \u212b \ufb01 \u0130 \u1e9b\u0323",
    "\u6f22\u5b57\u304b\u306a \ud55c\uad6d\uc5b4 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22",
    "\U0001f600\u200d\U0001f680 \U0001f1e9\U0001f1ea \ufffd \u00a0\u2028\u3000",
    "# ## ### 2024-01-01 1234567890 \u0663\u00bd \u2163",
    "I'LL we've 'TIS don't",
    "",
    " ",
    "<|im_start|>user\nHow?<|im_end|>\n<|mask|><|mask|> x <|endoftext|>",
    " <|mask|>  a<|im_end|>b <tool> <|im_ start|> <|MASK|> <pad><img>",
)


def _trained(size: int) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        CORPUS * 3, BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


WHOLE = json.loads(_trained(330).to_str())
VOCAB: dict[str, int] = WHOLE["model"]["vocab"]
FIRST = len(VOCAB)
IDS = {text: FIRST + index for index, text in enumerate(SPECIAL)}
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
DECODER = {str(number): {"content": text, **FLAGS} for text, number in IDS.items()}
OWN = [{"id": number, "content": text, **FLAGS} for text, number in IDS.items()]
TOOL = {str(FIRST + 4): {"content": "<tool>", **FLAGS, "normalized": True, "special": False}}
MERGES = "\n".join(" ".join(pair) for pair in WHOLE["model"]["merges"]) + "\n"
QWEN_CLASS = {"tokenizer_class": "Qwen2Tokenizer", **NAMED}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED}

Files = dict[str, Any]


def parts(config: Files, *, merges: str = "#version: 0.2\n" + MERGES, **others: Any) -> Files:
    """vocab.json, merges.txt and settings, and other JSON files by the stem of their names."""
    files = {"vocab.json": VOCAB, "merges.txt": merges, "tokenizer_config.json": config}
    return files | {f"{stem}.json": content for stem, content in others.items()}


def whole(config: Files, *, own: list[Files] = OWN, sections: Files | None = None, **others: Any) -> Files:
    """tokenizer.json and settings, and other JSON files by the stem of their names."""
    sections = {"decoder": WHOLE["pre_tokenizer"], **(sections or {})}
    tokenizer = WHOLE | {"added_tokens": own, **sections}
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config} | {f"{k}.json": v for k, v in others.items()}


START = {"id": "<|im_start|>", "type_id": 0}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": START}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
        "<|im_start|>": {"id": "<|im_start|>", "ids": [IDS["<|im_start|>"]], "tokens": ["<|im_start|>"]}
    },
}
CUT = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
PLAIN = [token | {"special": False} for token in OWN]
WORDS = {word: number for number, word in enumerate(["<unk>", "How", "many", "books", "##s", "?", "a", "b", "Tom"])}
WORDS_OWN = [{"id": 0, "content": "<unk>", **FLAGS}, {"id": len(WORDS), "content": "<|mask|>", **FLAGS}]
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
UNIGRAM = [
    ["<unk>", 0.0],
    ["\u2581", -2.0],
    ["\u2581How", -3.0],
    ["a", -4.0],
    ["\u2581a", -4.5],
    ["books", -5.0],
    ["s", -6.0],
]


def _model(pre_tokenizer: Files, decoder: Files, **model: Any) -> Files:
    return whole(
        FAST | {"eos_token": None, "pad_token": None, "unk_token": "<unk>"},
        own=[WORDS_OWN[0], WORDS_OWN[1] | {"id": len(model["vocab"])}],
        sections={"model": model, "pre_tokenizer": pre_tokenizer, "decoder": decoder},
    )


LAYOUTS: dict[str, Files] = {
    "parts, ids in the settings": parts(QWEN_CLASS | {"added_tokens_decoder": DECODER}),
    "parts, a token that is not special": parts(QWEN_CLASS | {"added_tokens_decoder": DECODER | TOOL}),
    "parts, flags left out": parts(
        QWEN_CLASS | {"added_tokens_decoder": {k: {"content": v["content"]} for k, v in (DECODER | TOOL).items()}}
    ),
    "parts, added_tokens.json": parts(QWEN_CLASS, added_tokens=IDS),
    "parts, added_tokens.json in another order": parts(QWEN_CLASS, added_tokens=dict(reversed(IDS.items()))),
    "parts, added_tokens.json and names": parts(
        {"tokenizer_class": "Qwen2Tokenizer"},
        added_tokens=IDS,
        special_tokens_map={**NAMED, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
    ),
    "parts, names as objects": parts(
        {"tokenizer_class": "Qwen2TokenizerFast"},
        added_tokens=IDS,
        special_tokens_map={key: {"content": text, **FLAGS} for key, text in NAMED.items()},
    ),
    "parts, both agree": parts(QWEN_CLASS | {"added_tokens_decoder": DECODER}, added_tokens=IDS),
    "parts, the settings have fewer": parts(
        QWEN_CLASS | {"mask_token": None, "added_tokens_decoder": dict(list(DECODER.items())[:3])}, added_tokens=IDS
    ),
    "parts, other names in the map": parts(
        QWEN_CLASS | {"added_tokens_decoder": DECODER}, special_tokens_map={"eos_token": "<|im_end|>"}
    ),
    "parts, extra tokens by name": parts(
        QWEN_CLASS | {"added_tokens_decoder": DECODER, "extra_special_tokens": {"image_token": "<img>"}}
    ),
    "parts, a list of extra tokens": parts(
        QWEN_CLASS | {"added_tokens_decoder": DECODER, "additional_special_tokens": ["<|im_start|>", "<pad>"]}
    ),
    "parts, a start": parts(
        QWEN_CLASS | {"added_tokens_decoder": DECODER, "bos_token": "<|im_start|>", "add_bos_token": True}
    ),
    "parts, an end": parts(QWEN_CLASS | {"added_tokens_decoder": DECODER, "add_eos_token": True}),
    "parts, no version": parts(QWEN_CLASS | {"added_tokens_decoder": DECODER}, merges=MERGES),
    "parts, lines of Windows": parts(
        QWEN_CLASS | {"added_tokens_decoder": DECODER}, merges=("#version: 0.2\n" + MERGES).replace("\n", "\r\n")
    ),
    "parts of GPT-2": parts(QWEN_CLASS | {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": DECODER}),
    "parts of GPT-2, added_tokens.json": parts(QWEN_CLASS | {"tokenizer_class": "GPT2Tokenizer"}, added_tokens=IDS),
    "whole": whole(FAST),
    "whole, no settings": whole({}),
    "whole beside parts of another": whole(FAST) | {"vocab.json": {"a": 0}, "merges.txt": ""},
    "whole, by Qwen2's rules": whole(
        QWEN_CLASS, sections={"normalizer": QWEN.normalizer, "pre_tokenizer": QWEN.pre_tokenizer}
    ),
    "whole, the settings have more": whole(FAST | {"added_tokens_decoder": DECODER | TOOL}, own=OWN[:2]),
    "whole, the settings have other flags": whole(
        FAST
        | {"added_tokens_decoder": {**DECODER, str(IDS["<|mask|>"]): {"content": "<|mask|>", **FLAGS, "lstrip": True}}},
        own=PLAIN,
    ),
    "whole, named tokens are special": whole(FAST, own=PLAIN),
    "whole, named tokens are new": whole(FAST | {"pad_token": "<pad>", "image_token": "<img>"}, own=OWN),
    "whole, named tokens are words": whole(
        FAST | {"pad_token": "\u0120day"}, sections={"model": WHOLE["model"] | {"vocab": VOCAB}}
    ),
    "whole, a map and added_tokens.json": whole(
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        special_tokens_map={**NAMED, "pad_token": "<pad>"},
        added_tokens={"<tool>": FIRST + 4},
    ),
    "whole, a start": whole(FAST, sections={"post_processor": TEMPLATE}),
    "whole, a start in the settings alone": whole(FAST | {"bos_token": "<|im_start|>", "add_bos_token": True}),
    "whole, spaces in the settings alone": whole(FAST | {"add_prefix_space": True, "model_max_length": 2}),
    "whole, cut and padded": whole(
        FAST,
        sections={
            "truncation": CUT,
            "padding": {"strategy": {"Fixed": 9}, "direction": "Left", "pad_id": 1}
            | {"pad_type_id": 0, "pad_token": "!", "pad_to_multiple_of": None},
        },
    ),
    "whole, normalized": whole(
        FAST | {"added_tokens_decoder": DECODER | TOOL},
        sections={"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}},
    ),
    "words": _model({"type": "Whitespace"}, {"type": "Fuse"}, type="WordLevel", vocab=WORDS, unk_token="<unk>"),
    "pieces of words": _model(
        {"type": "BertPreTokenizer"},
        {"type": "WordPiece", "prefix": "##", "cleanup": False},
        type="WordPiece",
        vocab=WORDS,
        unk_token="<unk>",
        continuing_subword_prefix="##",
        max_input_chars_per_word=100,
    ),
    "sentencepiece": _model(METASPACE, METASPACE, type="Unigram", vocab=UNIGRAM, unk_id=0, byte_fallback=False),
}

# With this scheme the encoding of a part depends on its place in the text.
FIRST_ALONE = METASPACE | {"prepend_scheme": "first"}
BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, BLANKS]}
NORMALIZED = [token | {"normalized": True} for token in OWN]
LONGER = [
    {"id": FIRST + 4, "content": "<|im_start|>user", **FLAGS, "special": False},
    {"id": FIRST + 5, "content": "user\n", **FLAGS, "special": False},
]
PLACED: dict[str, Files] = {
    "a space before the first": whole(FAST, sections={"pre_tokenizer": FIRST_ALONE}),
    "a space before the first, in a sequence": whole(
        FAST, sections={"pre_tokenizer": {"type": "Sequence", "pretokenizers": [FIRST_ALONE, WHOLE["pre_tokenizer"]]}}
    ),
    "a space before each": whole(FAST, sections={"pre_tokenizer": METASPACE}),
    "a normalizer's space before each": whole(FAST, sections={"normalizer": PREPEND}),
    "a normalizer's space before all": whole(FAST, own=NORMALIZED, sections={"normalizer": PREPEND}),
    "words of their own": whole(FAST, own=[token | {"single_word": True} for token in OWN]),
    "a longer token that is not special": whole(FAST, own=OWN + LONGER),
    "spaces beside": whole(FAST, own=[token | {"lstrip": True, "rstrip": True} for token in OWN]),
    "in lower case": whole(FAST, own=NORMALIZED, sections={"normalizer": {"type": "Lowercase"}}),
}
LAYOUTS |= PLACED


def write(folder: Path, files: Files) -> Path:
    """Write the files of a layout into `folder`."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (folder / name).write_text(text, newline="")
    return folder


def place(checkpoint: Checkpoint, source: Path, say: Callable[[str], None] = lambda text: None) -> TextCodec:
    """The tokenizer of a bundle of the checkpoint with the files of `source`."""
    progress = Progress()
    progress.say = say  # type: ignore[method-assign]
    place_tokenizer(replace(checkpoint, directory=source), source / "placed", progress)
    return TextCodec.open(source / "placed")
