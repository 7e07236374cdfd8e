"""The documents of gpu-check on disk: one a group and device, and one page over all of them.

    place = Place(out, identity)
    place.check("tiny", parts)          # before anything is measured
    place.keep("tiny", document)
    place.merged()

What was measured of other code or on another device is never put together; the page says that it is there.
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
_SAME = ("device", "driver", "code")  # of an identity, without which documents do not belong together


def commit() -> str | None:
    """What `git describe` says of this checkout; None where there is no repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        return told.stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def code() -> str:
    """The first digits of a hash over the sources of package and measurements: the same code, with or without git."""
    sources = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            sources.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return sources.hexdigest()[:12]


def failures(parts: dict[str, Any]) -> list[str]:
    """What crashed, what is wrong, and what was skipped though it was asked for, in sentences."""
    told = []
    for name, part in parts.items():
        told += [f"{name}: {part['error']}"] if "error" in part else []
        told += [f"{name}: {failure}" for failure in part.get("failures", ())]
    return told


@dataclass(frozen=True)
class Place:
    """A folder, and what is being measured: `identity` has the fields of `_SAME`, commit and versions."""

    out: Path
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the page and the documents, without what tells them apart."""
        return "gpu-check-" + "-".join(self.identity["device"].lower().split())

    def check(self, group: str, parts: tuple[str, ...]) -> None:
        """Refuse to measure some parts of a group into a document of other code or another driver."""
        kept = self._read(group)
        if parts and kept and (told := self._other(kept)):
            raise click.ClickException(
                f"{self._path(group)} was measured {told}: measure the whole group again, or give another --out"
            )

    def keep(self, group: str, document: dict[str, Any]) -> None:
        """Write the document of a group, with the parts that an earlier run of the same code measured and this not."""
        kept = self._read(group)
        earlier = kept["parts"] if kept and not self._other(kept) else {}
        whole = {"identity": self.identity, **document, "parts": {**earlier, **document["parts"]}}
        self.out.mkdir(parents=True, exist_ok=True)
        self._path(group).write_text(json.dumps(whole, indent=1) + "\n")

    def merged(self, groups: tuple[str, ...]) -> dict[str, Any]:
        """The documents of `groups` that belong together, and a sentence about each that does not."""
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
        """What of a kept document is not of this code, device and driver; None if all is."""
        differing = [key for key in _SAME if kept["identity"][key] != self.identity[key]]
        told = [f"{key} {kept['identity'][key]}, not {self.identity[key]}" for key in differing]
        return f"at commit {kept['identity']['commit']}: {'; '.join(told)}" if told else None


def places(out: Path, groups: tuple[str, ...]) -> list[Place]:
    """A place for every device of which documents are in `out`, each as the newest of its documents says."""
    newest: dict[str, tuple[str, Place]] = {}
    for group in groups:
        for path in out.glob(f"gpu-check-*-{group}.json"):
            kept = json.loads(path.read_text())
            place = Place(out, kept["identity"])
            newest[place.name] = max(newest.get(place.name, ("", place)), (kept["measured"], place), key=lambda n: n[0])
    return [place for _, place in newest.values()]
