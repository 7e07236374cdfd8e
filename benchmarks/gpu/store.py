"""The documents of gpu-check on disk: one for each group and device, and one page for all groups of a device.

    place = Place(out, identity)
    place.check("tiny", parts)          # before anything is measured
    place.keep("tiny", document)
    place.merged()

Measurements of different code or devices are never merged; the page mentions them.
"""

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = ("plugins", "runtime", "models", "export", "src/dpad", "benchmarks/gpu")
_SAME = ("device", "driver", "code")  # fields of an identity that must be equal for documents to be merged


def commit() -> str | None:
    """The output of `git describe` for this checkout; None without a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        return told.stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def code() -> str:
    """The first digits of a hash over the sources of package and benchmarks, which identifies code without git."""
    sources = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            sources.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return sources.hexdigest()[:12]


def failures(parts: dict[str, Any]) -> list[str]:
    """The failures of all parts as sentences: crashes, wrong results, and parts that were requested but skipped."""
    told = []
    for name, part in parts.items():
        told += [f"{name}: {part['error']}"] if "error" in part else []
        told += [f"{name}: {failure}" for failure in part.get("failures", ())]
    return told


@dataclass(frozen=True)
class Place:
    """A folder, and the `identity` of the code and device, which has the fields of `_SAME`, commit and versions."""

    out: Path
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        """The common part of the file names of page and documents."""
        return "gpu-check-" + "-".join(self.identity["device"].lower().split())

    def check(self, group: str, parts: tuple[str, ...]) -> None:
        """Raise an error if only some parts of a group would be measured into a document of other code or driver."""
        kept = self._read(group)
        if parts and kept and (told := self._other(kept)):
            raise click.ClickException(
                f"{self._path(group)} was measured {told}: measure the whole group again, or give another --out"
            )

    def keep(self, group: str, document: dict[str, Any]) -> None:
        """Write the document of a group; parts that only an earlier run of the same code measured are kept."""
        kept = self._read(group)
        earlier = kept["parts"] if kept and not self._other(kept) else {}
        whole = {"identity": self.identity, **document, "parts": {**earlier, **document["parts"]}}
        self.out.mkdir(parents=True, exist_ok=True)
        self._path(group).write_text(json.dumps(whole, indent=1) + "\n")

    def merged(self, groups: tuple[str, ...]) -> dict[str, Any]:
        """Merge the documents of `groups` with this identity, and add a sentence about each of the others."""
        found = {group: kept for group in groups if (kept := self._read(group))}
        others = {group: told for group, kept in found.items() if (told := self._other(kept))}
        own = {group: kept for group, kept in found.items() if group not in others}
        wrong = [f"{group}: {failure}" for group, kept in own.items() for failure in failures(kept["parts"])]
        return {**self.identity, "passed": not wrong, "failures": wrong, "groups": own, "not_merged": others}

    def write_page(self, page: str, merged: dict[str, Any]) -> None:
        """Write the page and its document."""
        (self.out / f"{self.name}.md").write_text(page)
        (self.out / f"{self.name}.json").write_text(json.dumps(merged, indent=1) + "\n")

    def _path(self, group: str) -> Path:
        return self.out / f"{self.name}-{group}.json"

    def _read(self, group: str) -> dict[str, Any] | None:
        path = self._path(group)
        if not path.exists():
            return None
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept

    def _other(self, kept: dict[str, Any]) -> str | None:
        """How a kept document's code, device or driver differs from this identity; None if they are equal."""
        differing = [key for key in _SAME if kept["identity"][key] != self.identity[key]]
        told = [f"{key} {kept['identity'][key]}, not {self.identity[key]}" for key in differing]
        return f"at commit {kept['identity']['commit']}: {'; '.join(told)}" if told else None


def places(out: Path, groups: tuple[str, ...]) -> list[Place]:
    """A place for every device with documents in `out`, with the identity of its newest document."""
    newest: dict[str, tuple[str, Place]] = {}
    for group in groups:
        for path in out.glob(f"gpu-check-*-{group}.json"):
            kept = json.loads(path.read_text())
            place = Place(out, kept["identity"])
            newest[place.name] = max(newest.get(place.name, ("", place)), (kept["measured"], place), key=lambda n: n[0])
    return [place for _, place in newest.values()]
