"""``saeworks recipes``: everything that can be trained is listed, and every setting is shown with its source."""

from __future__ import annotations

import json

import pytest

from saeworks.cli.app import main
from saeworks.jobs.config import RunConfig, resolve
from saeworks.jobs.plan import check_settings, grid
from saeworks.training.presets import PRESETS
from saeworks.training.recipes import RECIPES


def test_all_recipes_and_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["recipe"] for row in found["recipes"]] == list(RECIPES)
    assert [row["preset"] for row in found["presets"]] == list(PRESETS)
    assert {row["number"] for row in found["recipes"]} == {
        "k latents per token",
        "mean L0 aimed at",
        "weight of the penalty",
    }
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert "saeworks recipes NAME" in shown
    assert "arXiv 2404.16014" in shown


def test_a_recipe_is_shown_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "jumprelu"]) == 0
    shown = capsys.readouterr().out
    assert "(L0 / L0* − 1)²" in shown
    assert "jump.bandwidth" in shown
    assert "arXiv 2407.14435" in shown


def test_a_preset_is_shown_with_its_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "batchtopk-gpt2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"setting": "tokens", "value": "1000000000", "source": "arXiv 2412.06410"} in found["run"]
    assert {"setting": "aux_k.k", "value": "512", "source": "its code"} in found["settings"]
    assert "12,288" in found["about"]
    assert main(["recipes", "saebench"]) == 0
    assert "saebench-p_anneal" in capsys.readouterr().out


def test_an_unknown_name_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "batchtopk-gpt"]) == 2
    assert "Did you mean 'batchtopk-gpt2'" in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_run_that_can_start(name: str) -> None:
    several = any(r.inputs == "sources" for r in PRESETS[name].recipes)
    sites = {"site": "layers.0.resid_post,layers.1.resid_post"} if several else {}
    config = resolve(RunConfig, {"preset": name, **sites})
    check_settings(config.model_copy(update={"tokens": max(config.tokens, 2 * config.batch_size)}))
    members = grid(config)
    recipes = PRESETS[name].recipes
    assert {m.recipe for m in members} == set(recipes)
    rates = {r.name: r.learning_rate for r in recipes}
    for member in members:
        if rates[member.recipe.name] is not None and not member.recipe.by_width:
            assert member.learning_rate == rates[member.recipe.name], "published rates do not depend on the run"
