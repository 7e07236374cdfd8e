"""The Dockerfiles, which `make lint` also checks with hadolint, and the systemd unit.

No image is built here. Instead the files that a build would copy are made into a wheel, and the command that an image
starts is parsed and run.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser
from servers import Served

from dpad.commands.serve import command

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNIT = ROOT / "docs/dpad.service"


def values(path: Path, instruction: str) -> list[str]:
    """The arguments of each `instruction` in a Dockerfile, in order."""
    lines = DockerfileParser(fileobj=BytesIO(path.read_bytes())).structure
    return [line["value"] for line in lines if line["instruction"] == instruction]


def served_with(arguments: list[str]) -> dict[str, Any]:
    """The options that `dpad serve` parses from `arguments`; raises if it refuses one."""
    with command.make_context("serve", arguments) as context:
        return context.params


def test_images_are_made_of_what_is_there(tmp_path: Path) -> None:
    """Fails if a copied path is missing or ignored, or a module or a model is not copied."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for path in FILES:
        copies = [value.split() for value in values(path, "COPY")]
        sources = {name for *names, _ in copies for name in names if not names[0].startswith("--from=")}
        assert sources == kept, path
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
        else:
            shutil.copy(ROOT / name, tmp_path)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    subprocess.run([*build, str(tmp_path)], check=True, capture_output=True)
    inside = set(zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))).namelist())
    for folder in ("plugins", "runtime", "models", "export", "evaluation", "serving"):
        assert {f"dpad/{each.relative_to(ROOT)}" for each in (ROOT / folder).rglob("*.py")} <= inside
    assert {"dpad/cli.py", "dpad/models/tiny/model.safetensors", "dpad/serving/web/index.html"} <= inside


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_image_is_pinned_and_not_root_s(path: Path) -> None:
    """Fails if a base is not pinned, an extra is unknown, the server runs as root, or a copied stage is missing."""
    bases = [value.split()[0] for value in values(path, "FROM")]
    assert len(bases) == 2 and all(re.fullmatch(r"python:3\.\d+\.\d+-(slim-)?bookworm", base) for base in bases)
    made, user = values(path, "RUN")
    extras = re.findall(r"'\.\[(.*)\]'", made)[0].split(",")
    assert "serve" in extras and set(extras) <= set(PROJECT["optional-dependencies"])
    copied = [value.split()[1:] for value in values(path, "COPY") if value.startswith("--from=build")]
    assert copied == [["/opt/dpad", "/opt/dpad"]] and "python -m venv /opt/dpad " in made
    assert "constraints.txt" in made and f"PATH={copied[0][1]}/bin:" in values(path, "ENV")[0]
    [number] = re.findall(r"--uid (\d+)", user)
    assert values(path, "USER") == [f"{number}:{number}"] and int(number) > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_image_starts_a_server_that_asks_for_keys(path: Path) -> None:
    """Fails if `dpad serve` refuses the command of an image, or the server needs no key or uses another port."""
    program, name, *more = json.loads(values(path, "ENTRYPOINT")[0])
    assert program in PROJECT["scripts"] and name == "serve"
    options = served_with([*more, *json.loads(values(path, "CMD")[0])])
    assert options["api_key_file"] and not options["allow_anonymous"]
    assert options["host"] == "0.0.0.0" and [str(options["port"])] == values(path, "EXPOSE")


def test_the_health_check_of_an_image_tells(whole: Path) -> None:
    """Fails if the health check reports a running server as unhealthy, or a stopped one as healthy."""
    checks = {value.partition("CMD ")[2] for path in FILES for value in values(path, "HEALTHCHECK")}
    assert len(checks) == 1
    program, *arguments = json.loads(checks.pop())
    assert program == "python" and ":8000/" in arguments[-1]
    with Served(whole) as served:
        arguments[-1] = arguments[-1].replace(":8000/", f":{served.port}/")
        assert subprocess.run([sys.executable, *arguments], check=False, capture_output=True).returncode == 0
    assert subprocess.run([sys.executable, *arguments], check=False, capture_output=True).returncode != 0


def test_the_systemd_unit_starts_a_server() -> None:
    """Fails if `dpad serve` refuses the unit's command, needs no key, or is killed before it has drained."""
    said = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line and line[0] != "#")
    program, name, *arguments = shlex.split(said["ExecStart"])
    assert Path(program).name in PROJECT["scripts"] and name == "serve"
    options = served_with(arguments)
    keys = said["LoadCredential"].partition(":")[0]
    assert str(options["api_key_file"]) == f"${{CREDENTIALS_DIRECTORY}}/{keys}" and not options["allow_anonymous"]
    assert int(said["TimeoutStopSec"]) > options["drain"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """Fails if systemd does not know a setting of the unit or refuses its value."""
    program = shlex.quote(sys.executable)
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", UNIT.read_text()))
    ran = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
