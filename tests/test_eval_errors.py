"""`dpad eval` refuses mistakes in one line that names the cause, and does not import the training stack."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dpad.cli import main

ROW = '{"question": "w1", "answer": "#### 1"}'
FILES = {
    "good": f"{ROW}\n{ROW}\n",
    "cut": f"{ROW}\n\n{ROW[:20]}\n",
    "list": f"{ROW}\n[1]\n",
    "less": f'{ROW}\n{{"question": "w1"}}\n',
    "number": '{"question": "w1", "answer": 1}\n',
    "empty": "\n\n",
    "long": f'{ROW}\n{{"question": "{"w1 " * 300}", "answer": "w1"}}\n',
    "text": '{"text": "w5 w6"}\n{"text": ""}\n',
    "prompt": '{"text": "w5 w6", "prompt": 3}\n',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (("--task", "chess"), "InvalidRequest", "task 'chess' is not one of problems, long, gsm8k"),
        (("--task", "gsm8k"), "DataError", "give --data FILE"),
        (("--task", "humaneval"), "DataError", "give --data FILE"),
        (("--task", "problems", "--data", "good"), "InvalidRequest", "leave --data out"),
        (("--task", "long", "--shots", "1"), "InvalidRequest", "long takes no worked examples"),
        (("--task", "problems", "--fewshot-data", "good"), "InvalidRequest", "--fewshot-data"),
        (("--task", "gsm8k", "--data", "nowhere"), "DataError", "cannot be read"),
        (("--task", "gsm8k", "--data", "cut"), "DataError", "cut, line 3 is not JSON"),
        (("--task", "gsm8k", "--data", "list"), "DataError", "list, line 2 is not an object"),
        (("--task", "gsm8k", "--data", "less"), "DataError", "less, line 2 has no text 'answer'"),
        (("--task", "gsm8k", "--data", "number"), "DataError", "number, line 1 has no text 'answer'"),
        (("--task", "gsm8k", "--data", "empty"), "DataError", "holds no samples"),
        (("--task", "gsm8k", "--data", "deep"), "DataError", "deep, line 1 is not JSON"),
        (("--task", "gsm8k", "--data", "binary"), "DataError", "cannot be read"),
        (("--task", "gsm8k", "--data", "broken.gz"), "DataError", "cannot be read"),
        (("--task", "gsm8k", "--data", "good", "--shots", "1"), "DataError", "give --fewshot-data"),
        (("--task", "gsm8k", "--data", "good", "--gen-length", "33"), "InvalidRequest", "does not divide"),
        (("--task", "gsm8k", "--data", "good", "--out", "no/such/out.json"), "DataError", "is not a folder"),
        (("--task", "gsm8k", "--data", "good", "--out", "BUNDLE/out.json"), "InvalidRequest", "lies in the bundle"),
        (("--task", "gsm8k", "--data", "good", "--out", "other"), "DataError", "is not a file of samples"),
        (("--task", "gsm8k", "--data", "good", "--out", "three"), "DataError", "is not a file of samples"),
        (("--task", "gsm8k", "--data", "good", "--out", ""), "DataError", "--out names no file"),
        (("--task", "gsm8k", "--data", "long"), "DataError", "sample 2 cannot be answered: a canvas of "),
        (("--task", "humaneval", "--data", "good"), "DataError", "good, line 1 has no text 'task_id'"),
        (("--task", "perplexity", "--data", "text"), "DataError", "sample 2 cannot be scored"),
        (("--task", "perplexity", "--data", "text", "--shots", "1"), "InvalidRequest", "leave --shots out"),
        (("--task", "perplexity", "--data", "prompt"), "DataError", "prompt, line 1: 'prompt' is not text"),
    ],
)
def test_mistakes_are_named(
    eval_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], kind: str, said: str
) -> None:
    """Fails if the error lacks file, line or way out, or leaves files behind."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    Path("binary").write_bytes(b"\xff\xfe\x00")
    Path("broken.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    Path("other.samples.jsonl").write_text('{"a": 1}\n')
    Path("three.samples.jsonl").write_text('{"settings": 3}\n')
    Path("link").symlink_to(eval_bundle)
    arguments = tuple(argument.replace("BUNDLE", "link/float32") for argument in arguments)
    before = sorted([*tmp_path.iterdir(), *eval_bundle.rglob("*")])
    ran = CliRunner().invoke(main, ["eval", str(eval_bundle), "--gen-length", "32", "--mc-samples", "1", *arguments])
    assert ran.exit_code == 1, ran.output
    assert ran.stderr.startswith(f"dpad: {kind}: ")
    assert said in ran.stderr
    assert sorted([*tmp_path.iterdir(), *eval_bundle.rglob("*")]) == before


@pytest.mark.parametrize("limit", ["nan", "inf", "0"])
def test_a_time_limit_is_a_time(limit: str) -> None:
    """Fails if an invalid time limit is accepted, or refused only when the first program runs."""
    ran = CliRunner().invoke(main, ["eval", "bundle", "--task", "humaneval", "--time-limit", limit])
    assert ran.exit_code == 2 and "'--time-limit'" in ran.stderr


def test_measuring_needs_no_training_stack(eval_bundle: Path, tmp_path: Path) -> None:
    """Fails if `dpad eval` imports torch, onnx or lm-evaluation-harness."""
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "w5 w6 w7"}\n')
    command = ["eval", str(eval_bundle), "--task", "perplexity", "--data", str(data), "--mc-samples", "2", "--json"]
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'lm_eval', 'transformers', 'safetensors')))\n"
        f"from dpad.cli import main; main({command!r})\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    metrics = json.loads(ran.stdout)["metrics"]
    assert metrics["perplexity_full"]["value"] > 1
