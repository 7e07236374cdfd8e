"""Whatever the files hold, the readers raise only `CheckpointError`, and soon."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from checkpoints import FAMILIES, random_weights, raw_config, write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpad.models.checkpoint.checkpoint import Checkpoint, meta_model, parse_config, read_json
from dpad.models.checkpoint.headers import read_header
from dpad.models.checkpoint.names import check_tensors
from dpad.runtime.errors import CheckpointError

# The examples of a test share tmp_path and rewrite the same file.
same_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = st.none() | st.booleans() | st.integers(-3, 300) | st.integers() | st.floats() | st.text(max_size=6)
anything = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3)
)
layer_keys = ("n_layers", "num_hidden_layers")


@same_folder
@given(content=st.binary(max_size=200) | anything.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_as_json(tmp_path: Path, content: bytes) -> None:
    """Fails if a config.json that is not an object raises anything but `CheckpointError`."""
    path = tmp_path / "config.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_json(path), dict)
    except CheckpointError as error:
        assert "config.json" in str(error)


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_any_values_in_config(family: str, data: st.DataObject) -> None:
    """Fails if a value of any type or size gives anything but a usable config or `CheckpointError`."""
    raw = raw_config(family, layers=1)
    keys = data.draw(st.lists(st.sampled_from([*sorted(raw), "rope_parameters"]), min_size=1, max_size=3, unique=True))
    for key in keys:
        values = st.integers(-2, 3) | st.text(max_size=3) | st.none() if key in layer_keys else anything
        raw[key] = data.draw(values)
    try:
        architecture, config = parse_config(raw)
        meta_model(architecture, config)
    except CheckpointError:
        return
    assert config.width % config.heads == 0 or family == "dream"
    assert config.head_size % 2 == 0, "rotation pairs the halves of a head"
    assert type(config.max_length) is int and config.max_length >= 1
    assert type(config.mask_token_id) is int and type(config.eos_token_id) is int


@given(raw=st.dictionaries(st.sampled_from(["architectures", "n_layers", "d_model", "x"]), anything))
def test_any_object_as_config(raw: dict[str, Any]) -> None:
    """Fails if a random object as config raises anything but `CheckpointError`."""
    with pytest.raises(CheckpointError):
        parse_config(raw)


@pytest.mark.parametrize("key,value", [("n_layers", 10**6), ("d_model", 2**50), ("embedding_size", 2**62)])
def test_absurd_sizes_are_refused_soon(tmp_path: Path, key: str, value: int) -> None:
    """Fails if opening builds a model of the sizes in config.json before it checks the weights."""
    raw = raw_config("llada", layers=1)
    write_checkpoint(tmp_path, raw, random_weights(raw))
    (tmp_path / "config.json").write_text(json.dumps(raw | {key: value}))
    code = (
        "import sys; from pathlib import Path\n"
        "from dpad.models.checkpoint.checkpoint import Checkpoint, CheckpointError\n"
        "try: Checkpoint.open(Path(sys.argv[1]))\n"
        "except CheckpointError: print('refused')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{key}={value} was not refused in 60 s")
    assert done.stdout == "refused\n", done.stderr


def good_file(path: Path) -> bytes:
    """The bytes of a small safetensors file."""
    raw = raw_config("llada", layers=1)
    safetensors.torch.save_file(random_weights(raw), path)
    return path.read_bytes()


def assert_reads_or_refuses(path: Path, content: bytes) -> None:
    """Assert that reading gives entries within the file that match the model, or a `CheckpointError`."""
    path.write_bytes(content)
    try:
        entries = read_header(path)
        for entry in entries.values():
            assert 8 <= entry.offset <= entry.offset + entry.length <= len(content)
            assert entry.file == path and all(type(size) is int and size >= 0 for size in entry.shape)
        check_tensors(entries, meta_model(*parse_config(raw_config("llada", layers=1))))
    except CheckpointError as error:
        assert str(error)


@same_folder
@given(content=st.binary(max_size=120))
def test_any_bytes_as_weights(tmp_path: Path, content: bytes) -> None:
    """Fails if a file of noise raises anything but `CheckpointError`."""
    assert_reads_or_refuses(tmp_path / "model.safetensors", content)


@same_folder
@given(header=anything, data=st.binary(max_size=64))
def test_any_json_as_header(tmp_path: Path, header: object, data: bytes) -> None:
    """Fails if a header of random JSON raises anything but `CheckpointError`."""
    text = json.dumps(header).encode()
    assert_reads_or_refuses(tmp_path / "model.safetensors", struct.pack("<Q", len(text)) + text + data)


fields = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "BOOL", "F4", "X"]) | anything,
        "shape": st.lists(st.integers(-1, 70) | st.integers(), max_size=3) | anything,
        "data_offsets": st.lists(st.integers(-1, 70_000) | st.integers(), max_size=3) | anything,
        "more": anything,
    },
)


@same_folder
@given(names=st.lists(st.integers(0, 12), min_size=1, max_size=2), change=fields, meta=st.none() | anything)
def test_mutated_headers(tmp_path: Path, names: list[int], change: dict[str, Any], meta: object) -> None:
    """Fails if wrong offsets, shapes or dtypes of known tensors raise another error or are accepted."""
    content = good_file(tmp_path / "good.safetensors")
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    if meta is not None:
        header["__metadata__"] = meta
    for name in names:
        key = sorted(header)[name % len(header)]
        header[key] = header[key] | change if isinstance(header[key], dict) else change
    text = json.dumps(header).encode()
    changed = struct.pack("<Q", len(text)) + text + content[8 + size :]
    assert_reads_or_refuses(tmp_path / "model.safetensors", changed)


@same_folder
@given(
    places=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, 2000),
)
def test_flipped_bytes(tmp_path: Path, places: list[tuple[int, int]], cut: int | None) -> None:
    """Fails if flipped bytes or a truncation raise anything but `CheckpointError`."""
    content = bytearray(good_file(tmp_path / "good.safetensors"))
    for place, value in places:
        content[place] = value
    assert_reads_or_refuses(tmp_path / "model.safetensors", bytes(content[:cut]))


@same_folder
@given(weight_map=anything)
def test_any_index(tmp_path: Path, weight_map: object) -> None:
    """Fails if any shard index raises anything but `CheckpointError`, or reads outside the folder."""
    raw = raw_config("llada", layers=1)
    write_checkpoint(tmp_path, raw, random_weights(raw))
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("length", [0, 2**31, 2**63, 2**64 - 1])
def test_header_lengths(tmp_path: Path, length: int) -> None:
    """Fails if memory of a huge header length is allocated, or an empty header is accepted."""
    assert_reads_or_refuses(tmp_path / "model.safetensors", struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError):
        check_tensors(read_header(tmp_path / "model.safetensors"), meta_model(*parse_config(raw_config("dream"))))
