"""HumanEval: which part of an answer is code, and whether it passes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from dpad.cli import main
from dpad.evaluation.errors import SandboxError
from dpad.evaluation.humaneval import code_of, humaneval
from dpad.evaluation.sandbox.sandbox import Limits, Sandbox

PROMPT = 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """Sum of xs."""\n'
BODY = "    n = 0\n    for x in xs:\n        n += x\n    return n\n"
WRONG = "    return len(xs)\n"
PROBLEM = {
    "task_id": "own/0",
    "prompt": PROMPT,
    "entry_point": "total",
    "test": "def check(candidate):\n    assert candidate([1, 2, 4]) == 7\n    assert candidate([]) == 0\n",
}
BARE = "def total(xs):\n    return sum(xs)"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("humaneval") / "own.jsonl"
    path.write_text(json.dumps(PROBLEM) + "\n")
    return path


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    """A sandbox with the isolation that this kernel allows; `test_eval_sandbox.py` tests the isolation."""
    try:
        return Sandbox(Limits(seconds=5))
    except SandboxError:
        return Sandbox(Limits(seconds=5), weak=True)


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        (BODY, True),
        (WRONG, False),
        (BODY.lstrip(), True),
        ("return sum(xs)", True),
        ("for x in []:\n    pass\nreturn sum(xs)", True),
        ("if not xs:\n      return 0\n    return sum(xs)", True),
        ("    return sum(xs)\n\nprint(total(1))", True),
        ("    return sum(xs)\n\ndef check(candidate):\n    raise ValueError", True),
        ("    return sum(xs)\n# total(None)\nif total(None): pass", True),
        (f"Sure, here it is:\n\n```python\n{PROMPT}{BODY}```\nIt adds them up.", True),
        (f"```python\n{PROMPT}{WRONG}```", False),
        (f"```\n{BARE}\n```", True),
        (f"```python\n{BARE}", True),
        (f"```python\n{BODY}```", True),
        (f"First\n```python\nimport os\n```\nthen\n```python\n{BARE}\n```", True),
        (f"```python\n{BARE}\n```\nExample:\n```python\ntotal(None)\n```", True),
        (f"Here is the function.\n{BARE}", True),
        ("def helper(xs):\n    return sum(xs)\n\ndef total(xs: List[int]):\n    return helper(xs)", True),
        ("import math\nfrom functools import reduce\n\ndef total(xs: List[int]):\n    return math.fsum(xs)", True),
        ("    import sys\n    sys.exit(0)", False),
        ("    import os\n    os._exit(0)", False),
        (f"```python\n{BARE}\nimport os; os._exit(0)\n```", False),
        ("", False),
        ("I do not know.", False),
        ("```python\n```", False),
    ],
)
def test_an_answer_is_judged_by_the_code_in_it(data: Path, sandbox: Sandbox, answer: str, passed: bool) -> None:
    """Fails if correct code in an answer is not found, or wrong code passes."""
    task = humaneval(data, sandbox)
    assert task.grade(task.samples[0], answer) == {"pass@1": float(passed)}


def test_what_the_prompt_says_before_the_function_is_kept() -> None:
    """Fails if the program lacks the prompt's imports and helpers, or has the function twice."""
    assert code_of(PROMPT, "total", BARE) == f"from typing import List\n\n\n{BARE}"
    assert code_of(PROMPT, "total", WRONG) == PROMPT + WRONG
    assert code_of(PROMPT, "tot", BARE).startswith(PROMPT)


def test_prompts_ask_for_the_function_or_are_its_beginning(data: Path, sandbox: Sandbox) -> None:
    """Fails if a chat model gets no instruction, or a base model gets one."""
    assert humaneval(data, sandbox, raw=True).samples[0].prompt == PROMPT
    chat = humaneval(data, sandbox).samples[0].prompt
    assert chat.endswith(f"```python\n{PROMPT.strip()}\n```")
    assert not chat.startswith("```")


def test_the_command_runs_it(data: Path, sandbox: Sandbox, eval_bundle: Path, tmp_path: Path) -> None:
    """Fails if the task does not use the sandbox, or the results do not say which isolation the kernel refuses."""
    command = [
        "eval",
        eval_bundle,
        "--task",
        "humaneval",
        "--data",
        data,
        "--gen-length",
        32,
        "--out",
        tmp_path / "out",
    ]
    weak = ["--weak-sandbox"] if sandbox.refused else []
    ran = CliRunner().invoke(main, [*map(str, command), *weak])
    assert ran.exit_code == 0, ran.output
    document = json.loads((tmp_path / "out").read_text())
    assert document["metrics"] == {"pass@1": {"value": 0.0, "standard_error": None}}
    assert document["not_isolated"] == sandbox.refused
