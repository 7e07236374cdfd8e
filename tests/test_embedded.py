"""The embedded checkpoints reach the results of their model cards, through a bundle and the runtime."""

from pathlib import Path

import pytest

import dpad
from dpad.evaluation.tasks import long, problems
from dpad.export.pipeline import export_bundle
from dpad.export.progress import Progress
from dpad.export.settings import ExportSettings

TRAINED = ("tiny", "tiny-dream")


@pytest.fixture(scope="module", params=TRAINED)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embedded") / request.param
    return export_bundle(request.param, out, ExportSettings(dtypes=("w8a8",)), Progress())[0].directory


@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "onnxruntime-cpu-w8a8"])
@pytest.mark.parametrize("cache", ["prefix", "dual", "extend"])
def test_it_solves_problems_that_it_has_not_seen(bundle: Path, engine: str, cache: str) -> None:
    """Fails if fewer held-out problems are solved than expected, from 100 and 99.5 % in the model cards."""
    task = problems(20, shots=0, seed=11)
    with dpad.load(bundle, engine=engine) as model:
        texts = [model.generate(one.prompt, gen_length=96, cache=cache).text for one in task.samples]
    right = sum(task.grade(one, text)["strict_match"] for one, text in zip(task.samples, texts))
    assert right >= 17, texts


def test_it_answers_a_short_request(bundle: Path) -> None:
    """Fails if a simple question gets no answer, or one that does not end."""
    with dpad.load(bundle) as model:
        assert model.generate("What is the opposite of hot?", gen_length=64).text == "The opposite of hot is cold."


def test_it_ends_long_outputs_where_they_were_asked_to_end(bundle: Path) -> None:
    """Fails if held-out counting, lists and weeks too often end at a wrong place; 97.5 % were right."""
    task = long(16, seed=11)
    with dpad.load(bundle) as model:
        texts = [model.generate(one.prompt, gen_length=1024, cache="dual").text for one in task.samples]
    right = sum(task.grade(one, text)["exact_match"] for one, text in zip(task.samples, texts))
    assert right >= 14, texts
