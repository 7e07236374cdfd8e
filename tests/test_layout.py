"""The installed files, the direction of imports, and the packages that a service does not need."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from bundles import export, write_source

import dpad
from dpad.evaluation import errors as evaluation_errors
from dpad.runtime import errors
from dpad.runtime.extras import EXTRAS, needed_by

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("plugins", "runtime", "models", "export", "evaluation", "serving")  # each may import only those on its left
HEAVY = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "safetensors",
    "polygraphy",
    "transformers",
    "tensorrt_rtx",
    "tensorrt",
    "cuda",
    "lm_eval",
    "datasets",
)


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_run_one_way(folder: str) -> None:
    """Fails if a layer imports a layer above it."""
    later = FOLDERS[FOLDERS.index(folder) + 1 :]
    for path in (ROOT / folder).rglob("*.py"):
        for name in imported(path):
            assert not name.startswith(tuple(f"dpad.{other}" for other in later)), f"{path} imports {name}"
            assert name.split(".")[0] not in FOLDERS, f"{path} imports {name} without dpad."


def test_models_know_the_runtime_only_by_its_contract() -> None:
    """Fails if a family file imports more of the runtime than the contract; engines and readers may import more."""
    allowed = ("contract", "errors", "bundle.files", "bundle.variant")
    known = tuple(f"dpad.runtime.{name}" for name in allowed)
    for path in (ROOT / "models").rglob("*.py"):
        if path.name != "torch_engine.py" and path.parent.name != "compiled":
            used = {name for name in imported(path) if name.startswith("dpad.runtime.")}
            assert all(name.startswith(known) or name == "dpad.runtime.bundle" for name in used), (path, used)


def test_evaluation_measures_bundles_and_makes_none() -> None:
    """Fails if evaluation imports the exporter, a model family or torch; it may import the training text only."""
    for path in (ROOT / "evaluation").rglob("*.py"):
        names = imported(path)
        assert not {name.split(".")[0] for name in names} & {"torch", "onnx", "transformers"}, path
        assert not any(name.startswith("dpad.export") for name in names), path
        assert all(name.startswith("dpad.models.training") for name in names if name.startswith("dpad.models")), path


def test_serving_stands_on_the_runtime_alone() -> None:
    """Fails if serving imports models, export or evaluation, or one of these imports serving."""
    for path in (ROOT / "serving").rglob("*.py"):
        used = {name for name in imported(path) if name.startswith("dpad.")}
        assert all(name.startswith(("dpad.runtime", "dpad.serving")) for name in used), (path, used)
        assert not {name.split(".")[0] for name in imported(path)} & {*HEAVY}, path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_no_generic_name(wheel: Path) -> None:
    """Fails if a sub-package is missing, which an editable install hides, or `runtime` is a top-level package."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"dpad", f"dpad-{dpad.__version__}.dist-info"}
    for folder in (*FOLDERS, "src/dpad", "src/dpad/commands"):
        prefix = folder.removeprefix("src/") if folder.startswith("src") else f"dpad/{folder}"
        for path in (ROOT / folder).glob("**/*.py"):
            assert f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}" in names
    assert {"dpad/py.typed", "dpad/models/tiny/config.json", "dpad/models/tiny/model.safetensors"} <= names
    assert "dpad/models/tiny-dream/model.safetensors" in names
    assert {f"dpad/serving/web/{path.name}" for path in (ROOT / "serving" / "web").iterdir()} <= names


@pytest.mark.parametrize("where", [ROOT, ROOT / "tests", ROOT.parent])
def test_the_checkout_hides_nothing(where: Path) -> None:
    """Fails if a folder of the checkout shadows the package, or type checkers need an import hook to find it."""
    code = (
        "import dpad.export.pipeline, dpad.runtime.model; from importlib.machinery import PathFinder; "
        "assert PathFinder.find_spec('dpad').origin == dpad.__file__; print(dpad.load)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=where)
    assert ran.returncode == 0, ran.stderr


def test_the_wheel_imports_on_its_own(wheel: Path, tmp_path: Path) -> None:
    """Fails if the installed layout differs from the editable one."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import dpad.export.pipeline, dpad.models.step; "
        f"assert dpad.__file__.startswith({str(tmp_path)!r}), dpad.__file__; "
        f"assert dpad.export.pipeline.__file__.startswith({str(tmp_path)!r}), dpad.export.pipeline.__file__"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_serving_needs_no_training_stack(tmp_path: Path) -> None:
    """Fails if the runtime imports torch or onnx."""
    bundle = export(write_source(tmp_path / "source"), tmp_path / "out").directory
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
        "import dpad\n"
        f"print(len(dpad.load({str(bundle)!r}).generate('w5 w6', gen_length=32).canvas))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == 36


def test_without_its_extra_a_command_says_what_to_install(tmp_path: Path) -> None:
    """Fails if a command gives a traceback, or is hidden, in an installation without its extra."""
    bundle = export(write_source(tmp_path / "source"), tmp_path / "out").directory
    expected = {
        "export tiny --out x": "dpad: MissingExtra: dpad export needs torch: pip install '.[export]' in a checkout",
        "plan llada": "dpad plan needs torch: pip install '.[export]'",
        "synth llada x": "dpad synth needs torch: pip install '.[export]'",
        f"parity {bundle}": "pip install '.[export]'",
        f"generate {bundle} w5 --engine eager": "EngineUnavailable: engine eager needs torch: pip install '.[export]'",
        f"serve {bundle}": "dpad serve needs uvicorn: pip install '.[serve]'",
        "plugin compile --out x": "compiling kernels needs triton: pip install '.[kernel]'",
        "--help": "synth     Write a checkpoint",
    }
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted({m for ms in EXTRAS.values() for m in ms})!r}))\n"
        "from click.testing import CliRunner; from dpad.cli import main\n"
        "for line in sys.argv[1:]: print(repr(CliRunner().invoke(main, line.split()).output))"
    )
    ran = subprocess.run([sys.executable, "-c", code, *expected], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for said, wanted in zip(map(ast.literal_eval, ran.stdout.splitlines()), expected.values()):
        assert wanted in said and (said.count("\n") == 1 or "Usage" in said), said
    with pytest.raises(ModuleNotFoundError), needed_by("this", errors.MissingExtra):
        import_module("a_module_of_no_extra")


def test_without_the_harness_its_module_says_what_to_install() -> None:
    """Fails if importing the module for lm-evaluation-harness without it raises no error of this package."""
    code = "import sys; sys.modules['lm_eval'] = None; import dpad.evaluation.harness"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = (
        "dpad.runtime.errors.MissingExtra: dpad.evaluation.harness needs lm_eval: pip install '.[eval]' in a checkout"
    )
    assert ran.returncode == 1 and ran.stderr.splitlines()[-1].startswith(said)


def test_extras_bring_what_their_table_says() -> None:
    """Fails if the extra that an error names does not contain the missing package."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for tools in ("gpu", "test", "bench", "docs", "lint"):
        del extras[tools]
    names = {
        extra: [re.split(r"[\[<>=]", line)[0].replace("-", "_") for line in lines] for extra, lines in extras.items()
    }
    assert {extra: tuple(n.removesuffix("_bindings") for n in found) for extra, found in names.items()} == EXTRAS


def test_the_public_interface_is_what_it_says() -> None:
    """Fails if a public name is removed, added, or has no docstring."""
    public = {name for name in vars(dpad) if not name.startswith("_")}
    modules = {
        "cli",
        "commands",
        "errors",
        "evaluation",
        "export",
        "metadata",
        "models",
        "plugins",
        "runtime",
        "serving",
    }
    helpers = {
        "EngineUnavailable",
        "Path",
        "needed_by",
        "open_engine",
        "tokenizer_directory",
        "warn",
    }
    assert public - modules - helpers == set(dpad.__all__) - {"errors"}
    for name in dpad.__all__:
        assert getattr(dpad, name).__doc__


def kinds_of(root: type[Exception]) -> list[type[Exception]]:
    """`root` and all its subclasses."""
    return [root, *(kind for child in root.__subclasses__() for kind in kinds_of(child))]


def test_every_error_is_in_the_tree_that_documents_them() -> None:
    """Fails if an error class is missing in the tree at the top of runtime/errors.py or of its branch's file."""
    branch = kinds_of(evaluation_errors.EvaluationError)
    whole = [kind for kind in kinds_of(errors.DpadError) if kind.__module__.startswith("dpad.")]
    assert len(whole) > 20 and len(branch) > 3 and set(branch) < set(whole)
    for drawn, kinds in ((errors, {*whole} - {*branch[1:]}), (evaluation_errors, branch)):
        for kind in kinds:
            assert re.search(rf"^ +[│ ├└─]*{kind.__name__}\b", drawn.__doc__ or "", re.MULTILINE), kind


def told_by_the_tree() -> dict[str, set[str]]:
    """Folder -> the files that the tree of docs/architecture.md names in it."""
    tree = (ROOT / "docs/architecture.md").read_text().partition("## The tree")[2].partition("```text\n")[2]
    opened, told = [(-1, "")], {}
    for line in tree.partition("```")[0].splitlines():
        indent, word = len(line) - len(line.lstrip()), line.split()[:1]
        while opened[-1][0] >= indent and len(opened) > 1:
            opened.pop()
        if word and word[0].endswith("/"):
            opened.append((indent, f"{opened[-1][1]}{word[0]}"))
        told.setdefault(opened[-1][1], set()).update(re.findall(r"\w+\.py\b", line))
    return told


def test_the_tree_names_every_file() -> None:
    """Fails if a file is added or moved and the tree does not say what it is, or names one that is gone."""
    told = told_by_the_tree()
    for top in (*FOLDERS, "benchmarks"):
        folders = {path.parent for path in (ROOT / top).rglob("[!_]*.py")} - {ROOT / "benchmarks/gpu"}
        for folder in folders:
            files = {path.name for path in folder.glob("[!_]*.py")}
            assert told[f"{folder.relative_to(ROOT).as_posix()}/"] == files, folder


def test_files_stay_readable() -> None:
    """Fails if a source file is longer than 300 lines, since it then has a second subject."""
    for folder in (*FOLDERS, "src/dpad", "tests"):
        for path in (ROOT / folder).glob("**/*.py"):
            assert len(path.read_text().splitlines()) <= 300, path


NOUNS = ("bundle", "text", "engines", "decoding")  # of the runtime: each may import only those on its left


@pytest.mark.parametrize("noun", NOUNS)
def test_the_runtime_s_nouns_run_one_way(noun: str) -> None:
    """Fails if the bundle imports engines, or an engine imports the decode loop."""
    later = NOUNS[NOUNS.index(noun) + 1 :]
    for path in (ROOT / "runtime" / noun).rglob("*.py"):
        names = imported(path)
        assert not any(name.startswith(tuple(f"dpad.runtime.{other}." for other in later)) for name in names), path
        if path.parent.name == "gpu":
            assert not any(name.startswith("dpad.runtime.engines.tensorrt") for name in names), path
