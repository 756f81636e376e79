"""Every name is described, every deviation of a preset has its source, and the documentation says the same."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from saeworks.errors import InputError
from saeworks.jobs.config import RunConfig
from saeworks.training.catalogue import DEFAULTS, NOTES, NUMBERS, OF_THE_SOURCE, preset_recipes, settings_of, shown
from saeworks.training.penalties import L1, TargetL0
from saeworks.training.presets import PRESETS
from saeworks.training.recipes import RECIPES, Jump, Recipe, recipe
from saeworks.training.schedules import Span

FIELDS = {field.name for field in fields(Recipe)}


def test_every_recipe_is_described_and_nothing_else_is():
    assert list(NOTES) == list(RECIPES)
    assert all(note.latents and note.loss and note.source for note in NOTES.values())
    assert DEFAULTS.keys() | set(OF_THE_SOURCE) <= FIELDS


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_preset_changes_has_a_source(name):
    preset = PRESETS[name]
    assert preset.about
    for chosen in preset.recipes:
        plain = Recipe(chosen.name, chosen.selection)
        changed = {f for f in FIELDS if getattr(chosen, f) != getattr(plain, f)}
        assert changed <= preset.sources.keys()
    assert preset.settings.keys() <= preset.sources.keys()
    assert preset.settings.keys() <= RunConfig.model_fields.keys()
    assert preset.sources.keys() <= FIELDS | preset.settings.keys(), "a source of nothing"


def test_presets_say_which_setting_comes_from_where():
    rows = {row["setting"]: (row["value"], row["source"]) for row in settings_of("gemma-scope")}
    assert rows["learning_rate"] == ("7e-05", "arXiv 2408.05147")
    assert rows["grid"] == ("0.001, 0.005, 0.02", "arXiv 2412.06410, JumpReLU on the same model")
    assert rows["jump.bandwidth"] == ("0.001", "arXiv 2407.14435")
    assert rows["timing.sparsity_warm_up"] == ("10,000 steps, at most 25 % of the run", "arXiv 2408.05147")
    assert rows["clip_norm"] == ("–", "arXiv 2407.14435"), "that there is none is a setting as well"


def test_settings_of_a_recipe_leave_out_what_is_switched_off():
    rows = {row["setting"]: row["value"] for row in settings_of("gated")}
    assert rows["penalties"] == "L1(norms none, coefficient –)"
    assert rows["learning_rate"] == "by width and length of the run"
    assert not {key for key in rows if key.startswith(("jump", "aux_k", "control", "prefixes", "name"))}
    nested = {row["setting"]: row["value"] for row in settings_of("matryoshka_relu_sampled")}
    assert (nested["prefixes"], nested["control.reach"], nested["reorder"]) == ("10", "12", "yes")
    with pytest.raises(InputError, match="Did you mean 'gated'"):
        settings_of("gatde")


def test_values_are_shown_as_people_read_them():
    assert shown((1, 0.5)) == "1, 0.5"
    assert shown(Span(None, 0.05)) == "5 % of the run"
    assert shown(Span(0, 0.0)) == shown(()) == shown(None) == "–"
    assert shown((L1(), TargetL0())) == "L1(norms none, coefficient –), TargetL0(form relative, coefficient 1)"
    assert shown({"a": True}) == "a yes"


def test_the_documentation_has_the_same_table():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    for name, note in NOTES.items():
        row = f"| `{name}` | {note.latents} | {note.loss} | {NUMBERS[RECIPES[name].sparsity]} | {note.source} |"
        assert row in page, row
    for name in PRESETS:
        assert f"| `{name}` |" in page, name


def test_recipes_by_name_take_changes():
    mine = recipe("jumprelu", name="mine", jump=Jump(relative=True))
    assert mine == replace(RECIPES["jumprelu"], name="mine", jump=Jump(relative=True))
    assert recipe("saebench-topk") in PRESETS["saebench"].recipes
    assert not preset_recipes().keys() & RECIPES.keys()
    with pytest.raises(InputError, match="Did you mean 'saebench-topk'"):
        recipe("saebench-tpok")


def test_the_example_of_the_documentation_trains_a_recipe_of_ones_own(tmp_path, monkeypatch):
    """Its code as it stands, on a stream of known features and for fewer tokens."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (code,) = [block for block in page.split("```python\n")[1:] if "Trainer(" in block.split("```")[0]]
    code = code.split("```")[0]
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("from")]) <= 10
    from saeworks.activations.streams import SyntheticStream
    from saeworks.world.synthetic import IndependentFeatures

    stream = SyntheticStream(IndependentFeatures(n_features=16, d=8, probability=0.1))
    monkeypatch.chdir(tmp_path)
    scope = {"stream": stream}
    exec(code.replace("1_000_000", "20_000").replace("1024, 4096", "32, 64"), scope)
    assert len(scope["done"]) == 4
    for name, dictionary in scope["done"].items():
        assert dictionary.cfg.metadata["recipe"] == "mine"
        assert name.startswith("mine_n")
