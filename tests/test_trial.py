"""Tokenizers and templates that crash, hang or exhaust memory, which an export tries in a process of its own."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from bundles import export, write_source, write_tokenizer
from test_tokenizer_file import HARMFUL

from dpad.export.rehearsal import trial
from dpad.export.rehearsal.trial import try_text
from dpad.runtime import errors

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
SLOW = {"type": "Split", "pattern": {"Regex": "(a|a)*[^a]{2}"}, "behavior": "Isolated", "invert": False}
LONGER = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 4000}


def _change(folder: Path, **sections: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | sections))


@pytest.mark.parametrize("case", ["merges without the prefix", "a token as deep as a stack", "text that doubles"])
def test_an_export_refuses_what_the_library_aborts_on(tmp_path: Path, case: str) -> None:
    """Fails if an abort of the library ends the export, the error does not name the file, or files are left behind."""
    changes, said = HARMFUL[case]
    source = write_source(tmp_path / "source")
    _change(source, **{"added_tokens": []} | changes)
    with pytest.raises(errors.CheckpointError, match=f"source/tokenizer.json.*{said}"):
        export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_abort_is_an_error_with_the_librarys_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the library's abort on a failed allocation ends the export, or its last message is lost."""
    write_tokenizer(tmp_path)
    _change(tmp_path, normalizer=LONGER)
    monkeypatch.setattr(trial, "MEMORY", 200 << 20)
    with pytest.raises(errors.CheckpointError, match=r"tokenizer.json.*aborts.*SIGABRT.*allocation of \d+ bytes"):
        try_text(tmp_path, tmp_path)


def test_what_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a chat template that never ends blocks the export, or its process survives."""
    source = write_source(tmp_path / "source")
    (source / "chat_template.jinja").write_text(LOOPS)
    monkeypatch.setattr(trial, "SECONDS", 1)
    with pytest.raises(errors.CheckpointError, match="source.*template"):
        export(source, tmp_path / "out")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process may have ended
            assert str(source).encode() not in path.read_bytes()


def test_a_pattern_that_gets_stuck_is_refused(tmp_path: Path) -> None:
    """Fails if a tokenizer whose pattern fails on a long word is accepted."""
    write_tokenizer(tmp_path)
    _change(tmp_path, pre_tokenizer=SLOW)
    with pytest.raises(errors.CheckpointError, match="tokenizer.json: it cannot encode 'a.*retry-limit"):
        try_text(tmp_path, tmp_path)


def test_a_token_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Fails if a tokenizer that cannot decode one of its tokens is accepted."""
    write_tokenizer(tmp_path)
    _change(tmp_path, decoder={"type": "Strip", "content": "w", "start": 0, "stop": 9}, model=json.loads(
        '{"type": "WordLevel", "vocab": {"ww": 0, "<eos>": 1, "<mask>": 127, "<unk>": 4}, "unk_token": "<unk>"}'
    ))  # fmt: skip
    with pytest.raises(errors.CheckpointError, match="tokenizer.json: it cannot decode the token 0"):
        try_text(tmp_path, tmp_path)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"type": "WordLevel", "vocab": {"w1": 0, "<eos>": 1, "<mask>": 127}, "unk_token": "?"}},
    ],
    ids=["as it is", "for some texts only"],
)
def test_what_can_be_used_passes(tmp_path: Path, sections: dict[str, Any]) -> None:
    """Fails if the trial refuses a usable tokenizer, or needs more than the runtime's text code.

    A small vocabulary may refuse other texts with an error, which is not a fault.
    """
    write_tokenizer(tmp_path)
    _change(tmp_path, **sections)
    try_text(tmp_path, tmp_path)


def test_the_trial_imports_neither_torch_nor_numpy(tmp_path: Path) -> None:
    """Fails if the trial's process imports torch or numpy, which it does not need."""
    write_tokenizer(tmp_path)
    watch = "; sys.stderr.write(' '.join(sys.modules)); sys.exit(9)"
    start = trial._START.rstrip().replace("\nserve(*arguments)", "\nserve(*arguments)" + watch)
    modules, package = [os.path.abspath(path) for path in sys.path], Path(trial.__file__).parents[2]
    settings = json.dumps([modules, str(package.absolute()), 60, 4 << 30, 1 << 20, [str(tmp_path)] * 2])
    ran = subprocess.run([sys.executable, "-I", "-c", start, settings], capture_output=True, text=True)
    assert ran.returncode == 9 and "tokenizers" in ran.stderr.split()
    assert not {"torch", "numpy", "onnx", "onnxruntime", "transformers"} & set(ran.stderr.split())
