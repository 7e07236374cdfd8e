"""The chat template and the named special tokens of a checkpoint, in every layout of files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundles import write_source
from click.testing import CliRunner
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import dpad
from dpad.cli import main
from dpad.export.hub import resolve
from dpad.export.progress import Progress
from dpad.export.tokenizer.place import place_tokenizer
from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.text.chat_template import read_templates
from dpad.runtime.text.codec import TextCodec

USER = [{"role": "user", "content": "a"}]
LISTED = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
MORE = "additional_chat_templates/rag.jinja"
# Files beside tokenizer.json: templates as text, other files as JSON.
LAYOUTS: dict[str, dict[str, Any]] = {
    "a file": {"chat_template.jinja": "F"},
    "a file, Windows' lines": {"chat_template.jinja": "F\r\n{% if 1 %}\r\nG{% endif %}\r\n"},
    "the config": {"tokenizer_config.json": {"chat_template": "C"}},
    "both": {"chat_template.jinja": "F", "tokenizer_config.json": {"chat_template": "C"}},
    "a list": {"tokenizer_config.json": {"chat_template": LISTED}},
    "a table": {"tokenizer_config.json": {"chat_template": {"default": "D", "rag": "R"}}},
    "a file and a list": {"chat_template.jinja": "F", "tokenizer_config.json": {"chat_template": LISTED[:1]}},
    "a file and more": {"chat_template.jinja": "F", MORE: "A"},
    "more, one the default": {"additional_chat_templates/default.jinja": "B", "additional_chat_templates/x.jinja": "A"},
    "a file and another default": {"chat_template.jinja": "F", "additional_chat_templates/default.jinja": "B"},
    "more and the config": {
        MORE: "A",
        "tokenizer_config.json": {"chat_template": "C"},
    },
    "names, no default": {"tokenizer_config.json": {"chat_template": LISTED[:1]}},
    "more, no default": {MORE: "A", "additional_chat_templates/tool_use.jinja": "B"},
    "a processor's": {"chat_template.json": {"chat_template": "P"}},
    "none": {},
    "an empty list": {"tokenizer_config.json": {"chat_template": []}},
}


def write(folder: Path, files: dict[str, Any], tokenizer: str = "tiny-dream") -> Path:
    """Write a tokenizer.json with `files` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text((resolve(tokenizer).directory / "tokenizer.json").read_text())
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), newline="")
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_template_is_the_one_of_transformers(tmp_path: Path, layout: str) -> None:
    """Fails if another template is used than in transformers, or none where transformers raises an error."""
    folder = write(tmp_path, LAYOUTS[layout])
    try:
        wanted = AutoTokenizer.from_pretrained(folder).apply_chat_template(USER, tokenize=False)
    except ValueError as refused:
        if "no default" not in str(refused) or str(refused).endswith("are []."):
            assert not TextCodec.open(folder).has_chat_template
        else:
            with pytest.raises(
                errors.BundleError, match=r"choose one of (rag|rag, tool_use) with dpad export --chat-t"
            ):
                TextCodec.open(folder)
        return
    assert TextCodec.open(folder).render(USER) == wanted


def test_dot_files_are_no_templates(checkpoint: Path, tmp_path: Path) -> None:
    """Fails if a dot file beside a template, as left by copies, is read as a template."""
    source = lay(checkpoint, tmp_path / "source", "a file and more")
    for name in ("._rag.jinja", ".jinja"):
        (source / "additional_chat_templates" / name).write_bytes(b"\xff" if name == "._rag.jinja" else b"")
    assert sorted(read_templates(Checkpoint.open(source).directory)) == ["default", "rag"]


@pytest.mark.parametrize("written", [5, True, {"default": 3}, [{"name": "default"}], ["default"], [{"template": "x"}]])
def test_a_template_that_is_no_text_is_refused(tmp_path: Path, written: object) -> None:
    """Fails if an entry that is not text counts as no template."""
    with pytest.raises(errors.BundleError, match="chat_template"):
        TextCodec.open(write(tmp_path, {"tokenizer_config.json": {"chat_template": written}}))


TOKEN = {"content": "<|im_end|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
ADDED = {"4": TOKEN | {"content": "<|mask|>", "special": True}}
NAMED: dict[str, dict[str, Any]] = {
    "text": {"tokenizer_config.json": {"bos_token": "<|im_start|>", "eos_token": None, "add_bos_token": True}},
    "objects": {"tokenizer_config.json": {"eos_token": TOKEN | {"__type": "AddedToken"}}},
    "the older file": {"special_tokens_map.json": {"eos_token": TOKEN, "pad_token": "<|mask|>"}},
    "both files": {
        "tokenizer_config.json": {"eos_token": "<|endoftext|>", "bos_token": "<|im_start|>", "unk_token": "<|mask|>"},
        "special_tokens_map.json": {"eos_token": TOKEN, "unk_token": None, "additional_special_tokens": ["<|mask|>"]},
    },
    "both files, and the added tokens": {
        "tokenizer_config.json": {"eos_token": "<|endoftext|>", "added_tokens_decoder": ADDED},
        "special_tokens_map.json": {"eos_token": TOKEN, "mask_token": "<|mask|>"},
    },
    "tokens of a model's own": {
        "tokenizer_config.json": {
            "image_token": "<|mask|>",
            "extra_special_tokens": {"audio_token": "<|im_end|>", "b": "x"},
        }
    },
    "a list of more": {"tokenizer_config.json": {"extra_special_tokens": ["<|mask|>"], "eos_token": "<|im_end|>"}},
    "a model's own, saved again": {"tokenizer_config.json": {"model_specific_special_tokens": {"x_token": "<|mask|>"}}},
    "the older file's own": {
        "special_tokens_map.json": {"x_token": TOKEN, "extra_special_tokens": {"y_token": "<|mask|>"}}
    },
    "a class with tokens": {"tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}},
    "the fast class": {"tokenizer_config.json": {"tokenizer_class": "Qwen2TokenizerFast", "unk_token": None}},
    "another class": {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|mask|>"}},
    "nothing": {},
}
NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask", "image", "audio", "x", "y", "add_bos")
SHOWN = "".join(f"{name}={{{{ {name}_token }}}} {{{{ {name}_token is defined }}}}\n" for name in NAMES) + "{{ b }}"


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("layout", NAMED)
def test_the_template_knows_the_tokens_that_transformers_gives_it(tmp_path: Path, layout: str, padded: bool) -> None:
    """Fails if `bos_token` and similar variables of a template differ from transformers."""
    folder = write(tmp_path, NAMED[layout] | {"chat_template.jinja": SHOWN})
    if padded:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_padding(pad_token="<|mask|>", pad_id=4)
        tokenizer.save(str(folder / "tokenizer.json"))
    wanted = AutoTokenizer.from_pretrained(folder).apply_chat_template(USER, tokenize=False)
    assert TextCodec.open(folder).render(USER) == wanted


CHOSEN = {
    "the default": ("a file and more", None, "F"),
    "by its name": ("a file and more", "default", "F"),
    "another": ("a file and more", "rag", "A"),
    "of a list": ("names, no default", "rag", "R"),
    "the default of a list": ("a list", None, "D"),
    "of a folder": ("more, no default", "tool_use", "B"),
    "the only one": ("a file", "default", "F"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to which tests add their templates."""
    return write_source(tmp_path_factory.mktemp("checkpoint") / "source")


def lay(checkpoint: Path, folder: Path, layout: str) -> Path:
    """A copy of the checkpoint with the files of a layout."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(checkpoint / name, folder)
    for name, content in LAYOUTS[layout].items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize("case", CHOSEN)
def test_one_template_is_placed(checkpoint: Path, tmp_path: Path, case: str) -> None:
    """Fails if another template than the requested one is written, or a bundle has several."""
    layout, name, written = CHOSEN[case]
    source = Checkpoint.open(lay(checkpoint, tmp_path / "source", layout))
    placed = place_tokenizer(source, tmp_path / "tokenizer", Progress(), name)
    assert TextCodec.open(tmp_path / "tokenizer").template == written
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == sorted(placed)


def test_a_bundle_has_the_chosen_template(checkpoint: Path, tmp_path: Path) -> None:
    """Fails if --chat-template has no effect, or is missing in the bundle's provenance."""
    source = lay(checkpoint, tmp_path / "source", "a file and more")
    (source / MORE).write_text(written := "A{{ messages[-1]['content'] }}")
    command = ["export", str(source), "--out", str(tmp_path / "out"), "--no-parity", "--chat-template", "rag"]
    assert CliRunner().invoke(main, command).exit_code == 0
    with dpad.load(tmp_path / "out") as model:
        assert model.codec.template == written
    provenance = Bundle.open(tmp_path / "out").manifest.provenance
    assert set(LAYOUTS["a file and more"]) <= set(provenance["source_files"])
    assert provenance["settings"]["chat_template"] == "rag"


@pytest.mark.parametrize(
    ("layout", "options", "said"),
    [
        ("names, no default", [], "choose one of rag with dpad export --chat-template NAME"),
        ("names, no default", [], "has one chat template, which is not the default"),
        ("more, no default", [], "choose one of rag, tool_use with"),
        ("more and the config", [], "choose one of rag with"),
        ("a file and more", ["--chat-template", "chat"], "no chat template 'chat'; it has default, rag"),
        ("none", ["--chat-template", "chat"], "no chat template 'chat'; it has none"),
    ],
)
def test_an_export_names_the_templates_there_are(
    checkpoint: Path, tmp_path: Path, layout: str, options: list[str], said: str
) -> None:
    """Fails if an export without a default template succeeds, or the error does not list the names."""
    source = lay(checkpoint, tmp_path / "source", layout)
    ran = CliRunner().invoke(main, ["export", str(source), "--out", str(tmp_path / "out"), "--no-parity", *options])
    assert ran.exit_code == 1 and said in " ".join(ran.output.split())
    assert not (tmp_path / "out").exists()
