"""Draws docs/canvas.svg: what a step attends, for the whole suffix and for DPad's.

python docs/canvas.py docs/canvas.svg

The kept positions are those that `dpad.Gaussian` draws, not an artist's.
"""

import sys
from pathlib import Path

import numpy as np

import dpad

PROMPT, BLOCK, GENERATED, SEED = 8, 8, 48, 5  # tokens
CELL, GAP, LEFT, TOP, ROW = 11, 2, 100, 34, 38  # pixels
SCHEDULE = dpad.Gaussian(k=2.5, scale=2, window=24)
KINDS = {
    "prompt": "prompt",
    "done": "finished block",
    "block": "block being decoded",
    "kept": "suffix: attended",
    "dropped": "suffix: dropped",
}
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
rect { rx: 2px }
.prompt { fill: #8c959f } .done { fill: #4a9d6a } .block { fill: #e08a1e } .kept { fill: #3b7dd8 }
.dropped { fill: none; stroke: #b8bfc7; stroke-dasharray: 2 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .dropped { stroke: #59626c } }
"""


def kinds(schedule: dpad.SuffixSchedule, block: int) -> list[str]:
    """What each position of the canvas is, while `block` is decoded."""
    behind = GENERATED - (block + 1) * BLOCK
    kept = set(schedule.keep(block, behind, GENERATED, np.random.default_rng([SEED, block])).tolist())
    suffix = ["kept" if distance in kept else "dropped" for distance in range(behind)]
    return ["prompt"] * PROMPT + ["done"] * block * BLOCK + ["block"] * BLOCK + suffix


def cell(kind: str, x: int, y: int) -> str:
    """One position."""
    inset = 0.5 if kind == "dropped" else 0
    size = CELL - 2 * inset
    return f'<rect class="{kind}" x="{x + inset}" y="{y + inset}" width="{size}" height="{size}"/>'


def drawing() -> str:
    """The picture as SVG."""
    rows = [("whole suffix", dpad.Full(), 1)] + [(f"DPad, block {block + 1}", SCHEDULE, block) for block in (1, 2, 4)]
    parts, y = [], TOP
    for name, schedule, block in rows:
        row = kinds(schedule, block)
        attended = sum(kind != "dropped" for kind in row)
        parts.append(f'<text x="0" y="{y + 10}">{name}</text>')
        parts += [cell(kind, LEFT + place * (CELL + GAP), y) for place, kind in enumerate(row)]
        parts.append(f'<text x="{LEFT + len(row) * (CELL + GAP) + 8}" y="{y + 10}">{attended} tokens</text>')
        y += ROW if schedule == dpad.Full() else ROW - 12
    x = LEFT
    for kind, text in KINDS.items():
        parts += [cell(kind, x, 4), f'<text x="{x + CELL + 5}" y="14">{text}</text>']
        x += 40 + round(6.4 * len(text))
    width = LEFT + (PROMPT + GENERATED) * (CELL + GAP) + 76
    title = "<title>Each row is the canvas at one step; only filled cells take part in it.</title>"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" role="img">'
        f"{title}<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(drawing(), "utf-8")
