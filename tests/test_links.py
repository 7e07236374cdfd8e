"""Links in a checkpoint are followed only to its own files, since their targets would end up in a bundle."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import export, write_source
from heard import heard

from dpad.export.hub import read_config
from dpad.runtime.errors import CheckpointError

# every file that an export reads, or may read
READ = (
    "config.json",
    "generation_config.json",
    "presets.json",
    "adapter_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/rag.jinja",
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint beside a directory with a secret file."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("{}")
    return write_source(tmp_path / "source", layers=1)


def link(path: Path, target: Path | str) -> None:
    """Replace a file by a link."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)


def refuse(source: Path, *words: str) -> None:
    """Assert that an export of `source` names the file and writes nothing."""
    with pytest.raises(CheckpointError) as caught:
        export(source, source.parent / "out")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (source.parent / "out").exists()


@pytest.mark.parametrize("name", READ)
def test_no_file_is_read_outside(source: Path, name: str) -> None:
    """Fails if a file of a checkpoint can be a link to a file of the user."""
    link(source / name, source.parent / "outside" / "secret")
    refuse(source, name, "leads out of the checkpoint", "cp -rL")


WAYS: dict[str, Callable[[Path, Path], Any]] = {
    "relative": lambda path, secret: link(path, os.path.relpath(secret, path.parent)),
    "by another link": lambda path, secret: (link(path.parent / "b", secret), link(path, "b")),
    "by a folder": lambda path, secret: (link(path.parent / "f", secret.parent), link(path, "f/secret")),
    "by a folder and back": lambda path, secret: (
        link(path.parent / "f", secret.parent),
        link(path, "f/../outside/secret"),
    ),
    "to a device": lambda path, secret: link(path, "/dev/zero"),
    "to a process": lambda path, secret: link(path, "/proc/self/environ"),
    "to a folder": lambda path, secret: link(path, secret.parent),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_leads_outside(source: Path, way: str) -> None:
    """Fails if a chain of links, or a link through folders, is followed out of the checkpoint."""
    WAYS[way](source / "chat_template.jinja", source.parent / "outside" / "secret")
    refuse(source, "chat_template.jinja", "leads out of the checkpoint")


def test_a_linked_folder_of_templates(source: Path) -> None:
    """Fails if a linked folder outside is read although no file in it is a link."""
    (source.parent / "outside" / "rag.jinja").write_text("secret")
    (source / "additional_chat_templates").symlink_to(source.parent / "outside")
    refuse(source, "additional_chat_templates/rag.jinja", "leads out of the checkpoint")


@pytest.mark.parametrize("target", ["nowhere", "../../blobs/0123", "chat_template.jinja"])
def test_links_to_nothing_are_named(source: Path, target: str) -> None:
    """Fails if a broken link to a template is ignored, or circular links hang."""
    link(source / "chat_template.jinja", target)
    refuse(source, "chat_template.jinja", f"a broken link to {target}", "cp -rL")


def cached(source: Path, repository: Path) -> Path:
    """`source` in the layout of the hub's cache: a snapshot of links to blobs."""
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for place, path in enumerate(sorted(source.iterdir())):
        shutil.copy(path, repository / "blobs" / f"{place:040}")
        (snapshot / path.name).symlink_to(f"../../blobs/{place:040}")
    return snapshot


def test_links_of_the_hub_are_followed_to_their_own_repository(source: Path, tmp_path: Path) -> None:
    """Fails if a snapshot of the hub's cache cannot be exported, or one reads another repository's files."""
    snapshot = cached(source, tmp_path / "hub" / "models--a--b")
    other = cached(source, tmp_path / "hub" / "models--a--private")
    (tmp_path / "mine").symlink_to(snapshot, target_is_directory=True)
    assert heard(tmp_path / "mine") == heard(snapshot) == []
    link(snapshot / "chat_template.jinja", "../../../models--a--private/refs")
    (other.parent.parent / "refs").write_text("main")
    refuse_in(snapshot, tmp_path, "chat_template.jinja")
    link(snapshot / "chat_template.jinja", other / "chat_template.jinja")
    refuse_in(snapshot, tmp_path, "chat_template.jinja")
    shutil.rmtree(tmp_path / "hub/models--a--b/blobs")
    (tmp_path / "hub/models--a--b/blobs").symlink_to(tmp_path / "hub/models--a--private/blobs")
    refuse_in(snapshot, tmp_path, "leads out")


def refuse_in(snapshot: Path, tmp_path: Path, *words: str) -> None:
    """Assert that an export of `snapshot` is refused because of a link."""
    with pytest.raises(CheckpointError, match="leads out of the checkpoint") as caught:
        export(snapshot, tmp_path / "out")
    assert all(word in str(caught.value) for word in words)


def test_links_within_and_links_that_nobody_reads(source: Path, tmp_path: Path) -> None:
    """Fails if a directory is refused for links inside it, for unused links, or because it is reached by a link."""
    (source / "templates").mkdir()
    (source / "chat_template.jinja").rename(source / "templates/chat.jinja")
    link(source / "chat_template.jinja", "templates/chat.jinja")
    link(source / "README.md", tmp_path / "outside" / "secret")
    link(source / "runs", tmp_path / "outside")
    link(source / "modeling.py", "nowhere")
    (tmp_path / "link").symlink_to(source)
    assert heard(tmp_path / "link") == []


def test_a_plan_follows_no_link_either(source: Path) -> None:
    """Fails if `dpad plan` reads a file outside."""
    link(source / "config.json", source.parent / "outside" / "secret")
    with pytest.raises(CheckpointError, match=r"config\.json leads out of the checkpoint"):
        read_config(str(source))
