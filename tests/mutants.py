"""Mutants of a bundle: accidental damage to files, and changes by an attacker who computes the hashes again.

    bundle = copy(whole, tmp_path / "bundle")
    rng.choice(DAMAGES)(bundle, rng)                  # or SEALED

All randomness comes from `rng`, so that a mutant can be reproduced by its number.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from sealed import edit_graph, reseal


def copy(whole: Path, target: Path) -> Path:
    """Replace the previous copy by a new copy of the bundle, whose files are links until they are changed."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(whole, target, copy_function=os.link))


def files_of(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def rewrite(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # it is a link to the original's file
    path.write_bytes(data)


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes, most of them near the beginning, where formats have their headers."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        end = min(len(changed), rng.choice((64, 1024, len(changed))))
        changed[rng.randrange(end)] = rng.randrange(256)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def grow(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice((1, 16, 4096)))


def splice(data: bytes, rng: random.Random) -> bytes:
    """Move a piece of the data to another place."""
    start, place = rng.randrange(len(data)), rng.randrange(len(data))
    return data[:place] + data[start : start + rng.randrange(1, 256)] + data[place:]


BYTES = (flip, flip, flip, cut, grow, splice)


def change_bytes(bundle: Path, rng: random.Random) -> None:
    path = rng.choice(files_of(bundle))
    rewrite(path, rng.choice(BYTES)(path.read_bytes(), rng))


def swap_files(bundle: Path, rng: random.Random) -> None:
    first, second = rng.sample(files_of(bundle), 2)
    one, other = first.read_bytes(), second.read_bytes()
    rewrite(first, other)
    rewrite(second, one)


def lose(bundle: Path, rng: random.Random) -> None:
    rng.choice(files_of(bundle)).unlink()


def rename(bundle: Path, rng: random.Random) -> None:
    path = rng.choice(files_of(bundle))
    short = path.name[:200]
    names = (short.upper(), f".{short}.a1B2c3", f"{short}~", "\x1b[31m", os.fsdecode(b"\xff"), "x" * 255)
    path.rename(path.with_name(rng.choice(names)))


def link(bundle: Path, rng: random.Random) -> None:
    path = rng.choice(files_of(bundle))
    targets = [bundle.parent / "outside", Path("/etc/hostname"), Path("/dev/zero"), path, *files_of(bundle)]
    target = rng.choice(targets)
    if target == bundle.parent / "outside":
        rewrite(target, path.read_bytes())  # the right content, in the wrong place
    path.unlink()
    path.symlink_to(target)


def add(bundle: Path, rng: random.Random) -> None:
    folder = rng.choice([bundle, bundle / "float32", bundle / "tokenizer", bundle / "new"])
    folder.mkdir(exist_ok=True)
    path = folder / rng.choice(
        ("x", "config.json", ".x", "a b", "model.safetensors.bak", "README.md", os.fsdecode(b"\xfe"))
    )
    rng.choice((Path.touch, Path.mkdir, os.mkfifo, lambda place: place.symlink_to("/")))(path)


DAMAGES = (change_bytes, change_bytes, change_bytes, swap_files, lose, rename, link, add)


VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 31, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, -(10**400), float("inf"), float("nan"),
    0.5, -0.0, "", "x", "0", "x" * 5000, "\x1b[31m", "a\nb", "\u202e", "../x", "/etc/hostname", "float32", "\0", [], {},
    [None], [[]], [0], {"": None}, {"x": {}}, ["float32/step.onnx"], "float32/step.onnx", "w8a8", "llada", "dream",
    [[[[[[]]]]]], {"gaussian": {"k": 1e308}}, {"uniform": {}}, {"none": {}},
)  # fmt: skip


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON value except the empty one."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [found for key, value in items for found in [(*path, key), *places(value, (*path, key))]]


def change_fields(manifest: dict[str, Any], rng: random.Random) -> None:
    """Replace, remove, rename, or copy from elsewhere one or several values of a manifest."""
    manifest["presets"] = manifest["presets"] or {"default": {"gen_length": 64, "schedule": {"gaussian": {"k": 4}}}}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *path, key = rng.choice(places(manifest))
        parent: Any = manifest
        for step in path:
            parent = parent[step]
        how = rng.randrange(4)
        if how == 0 and isinstance(parent, dict):
            parent[rng.choice(("x", "", "\x1b", "../x", "w8a8", "default", "eos_token_ids"))] = parent.pop(key)
        elif how == 1:
            del parent[key]
        elif how == 2:
            *path, other = rng.choice(places(manifest))
            value: Any = manifest
            for step in path:
                value = value[step]
            parent[key] = json.loads(json.dumps(value[other]))
        else:
            parent[key] = rng.choice(VALUES)


def graph_fields(bundle: Path, rng: random.Random) -> None:
    """Remove, duplicate, rewire or rename nodes of the step, or change their attributes, shapes or weights."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        nodes, weights = graph.node, [tensor for tensor in graph.initializer if tensor.external_data]
        node, tensor = rng.choice(nodes), rng.choice(weights)
        name = rng.choice([value for node in nodes for value in node.output])
        for how in rng.choices(range(8), k=rng.choice((1, 1, 2))):
            if how == 0 and node in nodes:
                nodes.remove(node)
            elif how == 1 and node.input:
                node.input[rng.randrange(len(node.input))] = rng.choice((name, "", "x"))
            elif how == 2:
                node.op_type = rng.choice(("Add", "Loop", "If", "Scan", "Identity", "Concat", "Expand", "x"))
            elif how == 3:
                node.domain = rng.choice(("", "com.microsoft", "x", "dpad"))
            elif how == 4 and node.attribute:
                rng.choice(node.attribute).i = rng.choice((-1, 0, 1, 7, 2**31, 2**62, -(2**63)))
            elif how == 5:
                tensor.dims[:] = rng.choice(([], [0], [-1], [2**40], [2**31, 2**31], [2**62, 4], [1]))
            elif how == 6:
                entry = rng.choice(tensor.external_data)
                entry.value = rng.choice(
                    ("-1", "0", "1", str(2**63), "9" * 400, "x", "../outside", "/etc/hostname", "")
                )
            else:
                tensor.data_type = rng.choice((0, 1, 7, 8, 10, 16, 99))

    edit_graph(bundle, change)


def sealed_bytes(bundle: Path, rng: random.Random) -> None:
    path = rng.choice([path for path in files_of(bundle) if path.name != "manifest.json"])
    rewrite(path, rng.choice(BYTES)(path.read_bytes(), rng))
    reseal(bundle)


def sealed_swap(bundle: Path, rng: random.Random) -> None:
    swap_files(bundle, rng)
    if (bundle / "manifest.json").read_bytes().startswith(b"{"):
        reseal(bundle)


SEALED: tuple[Callable[[Path, random.Random], None], ...] = (graph_fields, graph_fields, sealed_bytes, sealed_swap)
