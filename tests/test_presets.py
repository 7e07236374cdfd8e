"""Presets of a bundle are validated, and a caller's options override them."""

import json
from pathlib import Path
from typing import Any

import pytest
from bundles import export, write_source
from checkpoints import EOS
from click.testing import CliRunner
from test_requests import Untouched

import dpad
from dpad.cli import main
from dpad.commands.decoding import chosen
from dpad.export.hub import published_id, resolve
from dpad.models.presets import PUBLISHED, presets_of
from dpad.runtime.decoding.presets import name_of, read_presets, schedule_named
from dpad.runtime.errors import InvalidRequest, ManifestError

PRESETS = {
    "default": {"gen_length": 64, "threshold": 0.7},
    "lists": {"gen_length": 96, "cache": "dual", "schedule": {"gaussian": {"k": 3, "scale": 1.6, "window": 80}}},
    "whole": {"schedule": {"none": {}}},
    "perplexity": {"gen_length": 32},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a checkpoint with presets."""
    folder = tmp_path_factory.mktemp("presets")
    source = write_source(folder / "source")
    (source / "presets.json").write_text(json.dumps(PRESETS))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, EOS], "temperature": 0.7}))
    return export(source, folder / "bundle").directory


def test_options_come_from_the_call_then_the_preset_then_the_default(bundle: Path) -> None:
    """Fails if a preset is lost in the bundle or applied to another model, or overrides the caller's options."""
    with dpad.load(bundle) as model:
        assert list(model.presets) == list(PRESETS)
        plain = model.options()
        assert (plain.gen_length, plain.threshold, plain.cache) == (64, 0.7, "prefix")
        assert plain.eos_token_ids == model.options(preset="whole").eos_token_ids == [5, EOS]
        lists = model.options(preset="lists", cache="none")
        assert (lists.gen_length, lists.cache, lists.threshold) == (96, "none", 0.9)
        assert lists.schedule == dpad.Gaussian(3, 1.6, 80)
        assert model.options(preset="whole").schedule == dpad.Full()
        assert model.options(preset="lists", gen_length=32).schedule == dpad.Gaussian(3, 1.6, 32), (
            "the canvas is shorter"
        )
        assert model.options(preset="lists", schedule=dpad.Full()).schedule == dpad.Full()
        assert dpad.DiffusionModel(model.engine, model.codec, model.presets).presets == model.presets, "are passed on"
        by_name = model.generate("w5 w6 w7", preset="lists", gen_length=32)
        by_hand = model.generate(
            "w5 w6 w7", gen_length=32, cache="dual", schedule=dpad.Gaussian(3, 1.6, 32), threshold=0.9
        )
        assert by_name.canvas.tolist() == by_hand.canvas.tolist()
        with pytest.raises(
            InvalidRequest, match="'essays' is not one of this bundle's: default, lists, whole, perplexity"
        ):
            model.options(preset="essays")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], {"gen_length": 64, "threshold": 0.7, "schedule": dpad.Gaussian()}),
        (["--preset", "lists"], {"gen_length": 96, "schedule": dpad.Gaussian(3, 1.6, 80)}),
        (["--preset", "lists", "--k", "2"], {"schedule": dpad.Gaussian(2, 1.6, 80)}),
        (["--preset", "lists", "--schedule", "none"], {"schedule": dpad.Full()}),
        (["--preset", "lists", "--schedule", "uniform", "--count", "3"], {"schedule": dpad.Uniform(3)}),
        (["--preset", "whole", "--gen-length", "32"], {"gen_length": 32, "schedule": dpad.Full()}),
        (["--no-early-termination"], {"early_termination": False, "threshold": 0.7}),
    ],
)
def test_the_command_line_says_what_differs_from_the_preset(
    bundle: Path, arguments: list[str], wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if an option that was not given overrides a preset, or one that was given does not."""
    seen: dict[str, Any] = {}
    generate = dpad.DiffusionModel.generate

    def watched(self: dpad.DiffusionModel, *prompt: Any, **options: Any) -> dpad.Generation:
        chosen = {name: value for name, value in options.items() if name not in ("raw", "on_step")}
        seen.update(vars(self.options(**chosen)))
        return generate(self, *prompt, **options)

    monkeypatch.setattr(dpad.DiffusionModel, "generate", watched)
    ran = CliRunner().invoke(main, ["generate", str(bundle), "w5 w6", *arguments], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert {name: seen[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("arguments", "preset", "length"),
    [
        (["--task", "perplexity"], "perplexity", 32),
        (["--task", "perplexity", "--preset", "whole", "--gen-length", "64"], "whole", 64),
        (["--task", "long"], "default", 64),
    ],
)
def test_a_measurement_names_its_preset(
    bundle: Path, tmp_path: Path, arguments: list[str], preset: str, length: int
) -> None:
    """Fails if the results of an evaluation do not name the preset that was used."""
    command = ["eval", str(bundle), "--limit", "1", "--mc-samples", "1", "--out", str(tmp_path / "out.json")]
    ran = CliRunner().invoke(main, [*command, *arguments])
    assert ran.exit_code == 0, ran.output
    assert f"[onnxruntime-cpu, preset {preset}: " in ran.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    assert (document["preset"], document["options"]["gen_length"]) == (preset, length)


def test_inspect_names_the_presets(bundle: Path) -> None:
    """Fails if `dpad inspect` does not list the presets."""
    assert "presets   default, lists, whole, perplexity" in CliRunner().invoke(main, ["inspect", str(bundle)]).output


@pytest.mark.parametrize(
    "data",
    [
        {"a": 3},
        {"a": {"temprature": 1}},
        {"a": {"schedule": "gaussian"}},
        {"a": {"schedule": {"gaussian": {"sigma": 2}}}},
        {"a": {"schedule": {"linear": {}}}},
        {"a": {"schedule": {"gaussian": {}, "none": {}}}},
        {"a": {"schedule": {"gaussian": [3]}}},
        {"a": {"schedule": {"gaussian": {"k": "4"}}}},
        {"a": {"schedule": {"uniform": {"count": 1.5}}}},
        *({"a": {"temperature": value}} for value in ("0.5", None, True, [0.5])),
        *({"a": {"gen_length": value}} for value in ("64", None, 64.0, True, 10**400)),
        {"a": {"cache": 5}},
        {"a": {"early_termination": "no"}},
        {"a": {"eos_token_ids": [1.5]}},
        *({"a": {"schedule": {"gaussian": {"window": w}}}} for w in ("abc", [1], 1.5, -5, 0, True, float("nan"))),
    ],
)
def test_presets_that_cannot_be_read_are_refused(data: dict[str, Any]) -> None:
    """Fails if an invalid preset in a manifest is accepted in part, or the error is untyped or does not name it."""
    with pytest.raises(ManifestError, match="preset 'a'"):
        read_presets(data)


@pytest.mark.parametrize("preset", ["default", "a"])
@pytest.mark.parametrize(
    ("brought", "given"),
    [
        ({"temperature": -1}, {}),
        ({"temperature": -1, "gen_length": 48}, {"gen_length": 64}),
        ({"cache": "blocks"}, {"threshold": 0.5}),
        ({"decoder": "guess"}, {}),
        ({"block_length": 48}, {"gen_length": 64}),
        ({"eos_token_ids": [10**6]}, {}),
    ],
)
def test_a_preset_that_cannot_be_served_is_named(preset: str, brought: dict[str, Any], given: dict[str, Any]) -> None:
    """Fails if the error blames the caller for a preset's value, or the preset for a caller's value."""
    model = dpad.DiffusionModel(Untouched(), None, {preset: brought})
    asked: dict[str, Any] = {**given, "preset": preset} if preset != "default" else given
    with pytest.raises(InvalidRequest, match=f"^preset '{preset}': "):
        model.generate([5], **asked)
    model = dpad.DiffusionModel(Untouched(), None, {preset: {"threshold": 0.5}})
    with pytest.raises(InvalidRequest, match="^temperature -2"):
        model.generate([5], **{**asked, "temperature": -2})


def test_what_mends_a_preset_is_taken(bundle: Path) -> None:
    """Fails if a preset's schedule is refused although the caller's own count or length makes it valid."""
    with dpad.load(bundle) as model:
        named = dpad.DiffusionModel(model.engine, None, {"a": {"schedule": {"uniform": {"count": 60}}}})
        with pytest.raises(InvalidRequest, match="^preset 'a': count 60"):
            named.generate([5], preset="a", gen_length=32)
        assert chosen(named, {"preset": "a", "gen_length": 32, "count": 3})["schedule"] == dpad.Uniform(3)


def test_a_schedule_keeps_what_its_base_says() -> None:
    """Fails if one parameter of a schedule resets the others, or values of another kind of schedule are kept."""
    base = dpad.Gaussian(3, 1.6, 64)
    assert schedule_named("gaussian", base, k=2) == dpad.Gaussian(2, 1.6, 64)
    assert schedule_named("uniform", base, count=5) == dpad.Uniform(5)
    assert schedule_named("none", base, k=2) == dpad.Full()
    assert [name_of(s) for s in (base, dpad.Uniform(3), dpad.Full())] == ["gaussian", "uniform", "none"]
    with pytest.raises(InvalidRequest, match="linear"):
        schedule_named("linear")


def test_published_presets_can_be_read_and_a_checkpoint_adds_its_own(tmp_path: Path) -> None:
    """Fails if the runtime refuses a preset of the paper's table, or a checkpoint's presets.json is ignored."""
    for label, presets in PUBLISHED.items():
        for preset in read_presets(presets).values():
            options = dpad.GenerationOptions(**preset)
            options.schedule.check(options.gen_length, options.block_length)
        assert presets_of(label, tmp_path, 1) == presets
    (tmp_path / "presets.json").write_text('{"gsm8k": {"gen_length": 512}}')
    assert presets_of("GSAI-ML/LLaDA-1.5", tmp_path, 1)["gsm8k"] == {"gen_length": 512}
    assert presets_of("somebody/else", tmp_path, 1) == {"gsm8k": {"gen_length": 512}}


@pytest.mark.parametrize(
    ("told", "default"),
    [
        (7, {"eos_token_ids": [7]}),
        ([7, 1], {"eos_token_ids": [7, 1]}),
        (1, None),
        ([1], None),
        (None, None),
    ],
)
def test_the_end_of_text_comes_with_the_checkpoint(tmp_path: Path, told: Any, default: Any) -> None:
    """Fails if an EOS in generation_config.json does not end the text, or a preset's own EOS are overridden."""
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": told}))
    assert presets_of("somebody/else", tmp_path, 1) == ({} if default is None else {"default": default})
    (tmp_path / "presets.json").write_text('{"a": {"gen_length": 32}, "b": {"eos_token_ids": [9]}}')
    presets = presets_of("somebody/else", tmp_path, 1)
    assert presets["a"] == {"gen_length": 32, **(default or {})}
    assert presets["b"] == {"eos_token_ids": [9]}


@pytest.mark.parametrize(
    ("folder", "config", "hub_id"),
    [
        ("sdar-4b-chat", {}, "JetLM/SDAR-4B-Chat"),
        ("llada", {}, "GSAI-ML/LLaDA-8B-Instruct"),
        ("LLaDA-1.5", {"_name_or_path": "GSAI-ML/LLaDA-8B-Instruct"}, "GSAI-ML/LLaDA-1.5"),
        ("mine", {"_name_or_path": "/data/SDAR-8B-Chat/"}, "JetLM/SDAR-8B-Chat"),
        ("mine", {"_name_or_path": None}, None),
        ("llada-tuned", {}, None),
    ],
)
def test_a_published_checkpoint_is_known_in_a_local_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, config: dict[str, Any], hub_id: str | None
) -> None:
    """Fails if a published checkpoint in a local directory lacks its presets, or another checkpoint gets them."""
    (tmp_path / folder).mkdir()
    assert published_id(resolve(f"{tmp_path}/{folder}/"), config) == (hub_id or str(tmp_path / folder))
    monkeypatch.chdir(tmp_path / folder)
    assert published_id(resolve("."), config) == (hub_id or ".")
