"""Agreement of config.json and the tokenizer: what cannot be right is refused, what is doubtful is reported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import TEMPLATE, export, write_source
from checkpoints import EOS, MASK, VOCAB, random_weights, raw_config, write_checkpoint
from heard import heard
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

import dpad
from dpad.export.forecast.layouts import LAYOUTS
from dpad.runtime.errors import CheckpointError

Edit = Callable[[Path], Any]


def set_keys(name: str, **values: Any) -> Edit:
    """Change a JSON file; the value `...` removes a key."""

    def edit(directory: Path) -> None:
        path = directory / name
        data = (json.loads(path.read_text()) if path.exists() else {}) | values
        path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))

    return edit


def tokenizer(change: Callable[[Tokenizer], Any]) -> Edit:
    """Change tokenizer.json."""

    def edit(directory: Path) -> None:
        loaded = Tokenizer.from_file(str(directory / "tokenizer.json"))
        change(loaded)
        loaded.save(str(directory / "tokenizer.json"))

    return edit


def added(*contents: str) -> Edit:
    """Add special tokens after the vocabulary."""
    return tokenizer(lambda loaded: loaded.add_special_tokens([AddedToken(text, special=True) for text in contents]))


def template(text: str) -> Edit:
    """Replace the chat template."""
    return lambda directory: (directory / "chat_template.jinja").write_text(text)


def both(*edits: Edit) -> Edit:
    """Apply edits one after the other."""
    return lambda directory: [edit(directory) for edit in edits]


def begins(token: str, number: int) -> Edit:
    """Add a post-processor that puts a token before every text."""
    processor = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, number)])
    return tokenizer(lambda loaded: setattr(loaded, "post_processor", processor))


NO_MASK = set_keys("tokenizer_config.json", mask_token=...)

REFUSED: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "mask is a word": (set_keys("config.json", mask_token_id=9), ("mask_token_id 9", "'w9'", f"'<mask>' ({MASK})")),
    "mask is a word, undeclared": (
        both(set_keys("config.json", mask_token_id=9), NO_MASK),
        ("mask_token_id 9", "'w9'", f"'<mask>' ({MASK})"),
    ),
    "mask is another special token": (
        set_keys("config.json", mask_token_id=EOS, eos_token_id=5),
        (f"mask_token_id {EOS}", "'<eos>'", "'<mask>'"),
    ),
    "mask is another than generation's": (
        both(
            set_keys("config.json", mask_token_id=9),
            set_keys("generation_config.json", mask_token_id=MASK),
            NO_MASK,
        ),
        ("generation_config.json", f"mask_token_id {MASK}", "'<mask>'", "has 9", "'w9'"),
    ),
    "mask is no token": (
        set_keys("config.json", mask_token_id=VOCAB + 1, embedding_size=VOCAB + 2, vocab_size=VOCAB + 2),
        (f"mask_token_id {VOCAB + 1} is no token", "'<mask>'"),
    ),
    "end is no token": (
        set_keys("config.json", eos_token_id=VOCAB + 1, embedding_size=VOCAB + 2, vocab_size=VOCAB + 2),
        (f"eos_token_id {VOCAB + 1} is no token", "'<eos>'"),
    ),
    "an end of several is no token": (
        both(
            set_keys("config.json", embedding_size=VOCAB + 2, vocab_size=VOCAB + 2),
            set_keys("generation_config.json", eos_token_id=[EOS, VOCAB]),
        ),
        (f"eos_token_id {VOCAB} is no token", "generation_config.json"),
    ),
    "an end is the mask": (set_keys("config.json", eos_token_id=[EOS, MASK]), ("eos_token_id", str(MASK))),
    "an end is outside": (set_keys("config.json", eos_token_id=[EOS, VOCAB]), ("eos_token_id", str(VOCAB))),
    "an end is no number": (set_keys("config.json", eos_token_id=[EOS, "2"]), ("eos_token_id", "'2'")),
    "an end is a list": (set_keys("config.json", eos_token_id=[EOS, [2]]), ("eos_token_id", "[2]")),
    "the template goes beyond": (
        both(added("<new>"), template("<new>" + TEMPLATE)),
        ("'<new>'", str(VOCAB), "template"),
    ),
    "the template goes beyond, for a system": (
        both(added("<new>"), template("{% if messages[0]['role'] == 'system' %}<new>{% endif %}" + TEMPLATE)),
        ("'<new>'", str(VOCAB), "template, with all roles"),
    ),
    "the tokenizer goes beyond": (both(added("<new>"), begins("<new>", VOCAB)), ("'<new>'", str(VOCAB), "tokenizer")),
    "the template writes masks": (template("<mask>" + TEMPLATE), ("'<mask>'", "template", "remove it")),
    "the tokenizer writes masks": (begins("<mask>", MASK), ("'<mask>'", "tokenizer", "remove it")),
}


def source_with(directory: Path, edit: Edit) -> Path:
    """A checkpoint, changed by `edit`, whose embedding has as many rows as config.json then says."""
    source = write_source(directory / "source", layers=1)
    edit(source)
    raw = json.loads((source / "config.json").read_text())
    if raw["vocab_size"] != VOCAB:
        write_checkpoint(source, raw, random_weights(raw))
    return source


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused(tmp_path: Path, case: str) -> None:
    """Fails if a bundle is made with a wrong mask or EOS, or with a prompt that every request refuses."""
    edit, words = REFUSED[case]
    with pytest.raises(CheckpointError) as caught:
        heard(source_with(tmp_path, edit))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


SAID: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "nothing": (lambda directory: None, ()),
    "several ends": (set_keys("generation_config.json", eos_token_id=[EOS, MASK - 1]), ("eos_token_id 126", "'w126'")),
    "an end that is a word": (
        both(set_keys("config.json", eos_token_id=7), set_keys("tokenizer_config.json", eos_token=...)),
        ("eos_token_id 7", "'w7'"),
    ),
    "another end than the tokenizer's": (
        set_keys("tokenizer_config.json", eos_token="w8"),
        ("does not end at the tokenizer's eos_token 'w8' (8)", "'<eos>' (1)"),
    ),
    "a mask that is a word": (
        both(set_keys("config.json", mask_token_id=9), NO_MASK, lambda directory: unmask(directory)),
        ("mask_token_id 9", "'w9'", "names no mask"),
    ),
    "another mask in generation_config.json": (
        set_keys("generation_config.json", mask_token_id=9),
        ("generation_config.json has mask_token_id 9", f"has {MASK}, which is used"),
    ),
    "the same mask in generation_config.json": (set_keys("generation_config.json", mask_token_id=MASK), ()),
    "a mask of GLM's": (
        both(set_keys("config.json", mask_token_id=9), NO_MASK, lambda directory: unmask(directory, "[gMASK]")),
        ("mask_token_id 9", "'w9'", "names no mask"),
    ),
    "a token beyond": (added("<new>", "<newer>"), ("2 of the tokenizer's tokens", f"'<new>' ({VOCAB})")),
}


def unmask(directory: Path, other: str = "<other>") -> None:
    """Replace the tokenizer's mask by another token."""
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace("<mask>", other))


@pytest.mark.parametrize("case", SAID)
def test_what_is_doubtful_is_said(tmp_path: Path, case: str) -> None:
    """Fails if a doubt is not reported or refuses the checkpoint, or if a correct checkpoint has one."""
    edit, words = SAID[case]
    lines = [line for line in heard(source_with(tmp_path, edit)) if not line.startswith("presets")]
    assert bool(lines) == bool(words)
    assert all(word in "\n".join(lines) for word in words), lines


# words, special tokens by id, what the tokenizer names, config.json
_QWEN = {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"}
PUBLISHED: dict[str, tuple[dict[int, str], dict[str, str], dict[str, Any]]] = {
    "LLaDA-8B-Instruct": (
        LAYOUTS["llada"].special,
        LAYOUTS["llada"].named,
        raw_config("llada", mask_token_id=126336, eos_token_id=126081, vocab_size=126464, embedding_size=126464),
    ),
    "Dream-v0-Instruct-7B": (
        LAYOUTS["dream"].special,
        LAYOUTS["dream"].named,
        raw_config("dream", mask_token_id=151666, eos_token_id=151643, vocab_size=152064),
    ),
    "SDAR-4B-Chat": (
        _QWEN | {151669: "<|MASK|>"},
        {"eos_token": "<|im_end|>", "mask_token": "<|MASK|>"},
        raw_config("sdar", mask_token_id=None, eos_token_id=151643, vocab_size=151936, head_dim=2, block_size=None),
    ),
    "Fast_dLLM_v2_7B": (
        _QWEN | {151665: "|<MASK>|"},
        {"eos_token": "<|im_end|>"},
        raw_config("fast_dllm", mask_token_id=151665, eos_token_id=151645, vocab_size=152064, bd_size=32),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_raise_no_doubt(tmp_path: Path, name: str) -> None:
    """Fails if the authors' own files are refused, whose EOS and mask differ from the tokenizer's named tokens."""
    special, named, raw = PUBLISHED[name]
    sizes = {"d_model": 4, "mlp_hidden_size": 4} if "d_model" in raw else {"hidden_size": 4, "intermediate_size": 4}
    raw |= sizes
    weights = random_weights(raw | {"mask_token_id": raw["mask_token_id"] or 151669})
    source = write_checkpoint(tmp_path / name, raw, weights)
    loaded = Tokenizer(WordLevel({f"w{i}": i for i in range(min(special))}, unk_token="w0"))
    loaded.pre_tokenizer = WhitespaceSplit()
    fill = {number: special.get(number, f"<|{number}|>") for number in range(min(special), max(special) + 1)}
    loaded.add_special_tokens([AddedToken(fill[number], special=True) for number in sorted(fill)])
    loaded.save(str(source / "tokenizer.json"))
    set_keys("tokenizer_config.json", **named)(source)
    template(TEMPLATE + next(text for text in fill.values() if "mask" not in text.lower()))(source)
    lines = [line for line in heard(source, max_length=64) if not line.startswith("presets")]
    assert all("is assumed" in line for line in lines), lines
    assert len(lines) == 2 * (name == "SDAR-4B-Chat")


def test_every_end_of_a_list_ends_text(tmp_path: Path) -> None:
    """Fails if only the first EOS in config.json's list ends the text."""
    source = write_source(tmp_path / "source")
    bundle = export(source, tmp_path / "out")
    with dpad.load(bundle.directory) as model:
        whole = model.generate("w9 w10", gen_length=64, early_termination=False)
        end = next(token for token in whole.token_ids if token not in (EOS, MASK))
        wanted = model.generate("w9 w10", gen_length=64, eos_token_ids=(EOS, end))
        assert wanted.nfe < whole.nfe
    set_keys("config.json", eos_token_id=[EOS, end])(source)
    with dpad.load(export(source, tmp_path / "list").directory) as model:
        assert list(model.options().eos_token_ids or ()) == [EOS, end]
        assert model.engine.contract.eos_token_id == EOS
        result = model.generate("w9 w10", gen_length=64)
        assert (result.token_ids, result.nfe) == (wanted.token_ids, wanted.nfe)
