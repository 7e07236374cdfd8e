"""HumanEval: its prompts, the program made from an answer, and the program's verdict in the sandbox.

    task = humaneval(Path("HumanEval.jsonl.gz"), Sandbox())
    program_of(sample, "```python\\ndef f(x): ...\\n```")

`code_of` finds the code of an answer by these rules:

1. If the answer has a fence, the code is the first fenced block that defines the function, or else the
   first block. A fence that is not closed reaches to the end.
2. If that code, or an answer without fences, defines the function at the start of a line, it is used from its first
   line of code on, after the part of the prompt that comes before the function.
3. Otherwise it continues the prompt as the body of the function: it is indented if necessary, and ends before the next
   line that starts at the left margin and cannot belong to a body.
"""

import re
import textwrap
from pathlib import Path

from dpad.evaluation.data import digests, read_lines
from dpad.evaluation.sandbox.sandbox import Sandbox
from dpad.evaluation.scoring import cut
from dpad.evaluation.tasks import Sample, Task

_FENCE = re.compile(r"```[ \t]*\w*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_CODE = re.compile(r"^(?:from|import|def|class|async def|@)\b|^@", re.MULTILINE)
_AFTER_BODY = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@", "\n```")
_ASK = "Complete the function below. Answer with the whole function in one Python code block.\n\n```python\n{}\n```"


def humaneval(data: Path, sandbox: Sandbox, limit: int | None = None, raw: bool = False) -> Task:
    """The problems of a local HumanEval file; with `raw` a prompt is only the beginning of the function.

    The metric `pass@1` is 1.0 if the answer's program ran to the end of the problem's tests.
    """
    rows = read_lines(data, ("task_id", "prompt", "test", "entry_point"))[:limit]
    samples = [
        Sample(index, row["prompt"] if raw else _ASK.format(row["prompt"].strip("\n")), "", row)
        for index, row in enumerate(rows)
    ]

    def grade(sample: Sample, text: str) -> dict[str, float]:
        return {"pass@1": float(sandbox.run(program_of(sample, text)).passed)}

    return Task("humaneval", samples, grade, digests([data]))


def program_of(sample: Sample, text: str) -> str:
    """The whole program: the code of the answer, the problem's tests, and the call that runs them."""
    facts = sample.facts
    return (
        f"{code_of(facts['prompt'], facts['entry_point'], text)}\n\n{facts['test']}\n\ncheck({facts['entry_point']})\n"
    )


def code_of(prompt: str, entry_point: str, text: str) -> str:
    """Code that defines `entry_point`, extracted from an answer to `prompt` by the rules above."""
    defines = re.compile(rf"^(?:async )?def {re.escape(entry_point)}\b", re.MULTILINE)
    blocks = [match.group(1) for match in _FENCE.finditer(text)]
    if blocks:
        text = next(filter(defines.search, blocks), blocks[0])
    if defines.search(text):
        start = defines.search(prompt)
        begin = _CODE.search(text)
        return prompt[: start.start() if start else 0] + text[begin.start() if begin else 0 :]
    return prompt + cut(_indented(text), _AFTER_BODY)


def _indented(body: str) -> str:
    """Indent a function's body; in many answers only its first line lacks the indent."""
    lines = [line for line in body.strip("\n").splitlines() if line.strip()]
    if not lines or lines[0][0] in " \t":
        return body
    depths = [len(line) - len(line.lstrip()) for line in lines]
    opens_block = lines[0].rstrip().endswith(":")
    if len(lines) > 1 and min(depths[1:]) >= 4 and (not opens_block or depths[1] > 4):
        return "    " + body.lstrip("\n")
    return textwrap.indent(body, "    ")
