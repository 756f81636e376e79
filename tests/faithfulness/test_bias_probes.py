"""Probes for a group's tendency: planted directions, shuffled labels, splits that cannot leak, and real activations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cot_cases import answered, answers, mirrored_questions
from torch import Tensor

from saeworks.cli.app import main
from saeworks.errors import InputError
from saeworks.faithfulness.bias_probes import probe_biases, ridge_path, template_biases
from saeworks.faithfulness.criterion import score
from saeworks.faithfulness.importers import Study, write_study
from saeworks.faithfulness.probe_splits import ProbeSettings, Template, baseline, family, shuffled, split_families
from saeworks.faithfulness.prompt_activations import POSITIONS, prompt_activations
from saeworks.faithfulness.tasks.iphr_prompts import subject_prompt
from saeworks.faithfulness.world_questions import world_questions
from saeworks.models.language_model import LanguageModel, load_language_model

QUICK = ProbeSettings(shuffles=19)


@pytest.fixture(scope="module")
def world() -> LanguageModel:
    return load_language_model("world:base", device="cpu")


def planted(
    properties: int, width: int, strength: float, seed: int = 0
) -> tuple[Tensor, list[Template], dict[Template, float]]:
    """Eight questions for each of the groups: noise, a mark of the property, and B along one direction."""
    draw = torch.Generator().manual_seed(seed)
    groups = [(f"p{i}", comparison) for i in range(properties) for comparison in ("gt", "lt")]
    bias = {group: float(torch.rand((), generator=draw)) for group in groups}
    direction = torch.randn(width, generator=draw)
    marks = torch.randn(properties, width, generator=draw)
    templates = [group for group in groups for _ in range(8)]
    labels = torch.tensor([bias[group] for group in templates])
    property_of = torch.tensor([int(name[1:]) for name, _ in templates])
    noise = torch.randn(len(templates), width, generator=draw)
    return 0.3 * noise + 0.3 * marks[property_of] + strength * (labels[:, None] - 0.5) * direction, templates, bias


def test_a_planted_direction_is_found_on_properties_that_were_not_seen() -> None:
    x, templates, bias = planted(16, 24, strength=4.0)
    found = probe_biases({"here": x, "noise": planted(16, 24, 0.0, seed=1)[0]}, templates, bias, QUICK)
    here, noise = found.probes
    assert here.fvu < 0.1
    assert here.p == here.p_best == 1 / 20
    assert noise.fvu > 0.9
    assert found.best is here
    assert (found.templates, found.families, found.questions) == (32, 16, 256)
    assert len(here.penalties) == 16
    # The numbers of the groups are those that the FVU is made of.
    assert sum(one.error for one in here.groups) / 32 / found.variance == pytest.approx(here.fvu)
    for one in here.groups:
        assert one.error == pytest.approx((one.mean - one.bias) ** 2 + one.sd**2)


def test_shuffled_labels_give_no_better_than_the_mean() -> None:
    x, templates, bias = planted(16, 24, strength=4.0)
    found = probe_biases({"here": x}, templates, bias, QUICK)
    assert found.probes[0].fvu_shuffled is not None
    assert found.probes[0].fvu_shuffled > 0.95
    # One family at a time is held out: the mean of the 30 other groups misses by the leave-out factor or more.
    assert found.fvu_mean > 1


def test_recognising_the_property_does_not_help() -> None:
    """Each property has an activation of its own; a split by questions or groups would read B off it."""
    names = [f"p{i}" for i in range(12)]
    templates = [(name, comparison) for name in names for comparison in ("gt", "lt") for _ in range(6)]
    x = torch.eye(12).repeat_interleave(12, dim=0)
    draw = torch.Generator().manual_seed(3)
    of_property = {name: float(torch.rand((), generator=draw)) for name in names}
    bias = {(name, comparison): of_property[name] for name, comparison in templates}
    found = probe_biases({"property": x}, templates, bias, QUICK)
    assert found.probes[0].fvu > 0.98


def test_the_parts_of_a_fold_share_no_family_and_everything_is_tested_once() -> None:
    for count, folds in ((3, None), (7, None), (7, 3), (29, 5)):
        parts = split_families(count, ProbeSettings(folds=folds, seed=count))
        for fold in parts:
            assert fold.test
            assert sorted((*fold.test, *fold.train)) == list(range(count))
            assert sorted(one for _, aside in fold.inner for one in aside) == list(fold.train)
            for fitted, aside in fold.inner:
                assert fitted
                assert aside
                assert sorted((*fitted, *aside)) == list(fold.train)
        assert sorted(one for fold in parts for one in fold.test) == list(range(count))
    assert split_families(29, ProbeSettings(seed=1)) != split_families(29, ProbeSettings(seed=2))


def test_held_out_labels_have_no_influence_on_their_predictions() -> None:
    x, templates, bias = planted(6, 8, strength=1.0)
    before = probe_biases({"x": x}, templates, bias, ProbeSettings(shuffles=0)).probes[0]
    changed = {group: (1 - value if group[0] == "p2" else value) for group, value in bias.items()}
    after = probe_biases({"x": x}, templates, changed, ProbeSettings(shuffles=0)).probes[0]
    of = {(one.property_id, one.comparison): one for one in after.groups}
    for one in before.groups:
        same = of[one.property_id, one.comparison].mean == pytest.approx(one.mean, abs=1e-12)
        assert same == (one.property_id == "p2")
    assert (before.fvu_shuffled, before.p, before.p_best) == (None, None, None)


def test_wordings_and_negations_belong_to_the_family_of_their_property() -> None:
    kinds = [family(f"world-weight{mark}") for mark in ("", "-w2", "-not", "-w2-not", "-w12")]
    assert set(kinds) == {"world-weight"}
    assert family("wm-us-city-lat") == "wm-us-city-lat"
    assert len({family(question.property_id) for question in world_questions(pairs=1, negations=True)}) == 6


def test_families_trade_labels_as_a_whole() -> None:
    groups = [(f"p{i}{mark}", comparison) for i in range(5) for comparison in ("gt", "lt") for mark in ("", "-w2")]
    groups.append(("alone", "gt"))
    labels = torch.arange(len(groups), dtype=torch.float64)
    orders = {tuple(shuffled(labels, groups, 0, i).tolist()) for i in range(20)}
    assert len(orders) > 10
    for order in orders:
        assert sorted(order) == labels.tolist()
        assert order[-1] == labels[-1]  # nothing else is asked in this way only
        for place, value in enumerate(order[:-1]):
            # The same wording and comparison, and the whole family from one other family.
            assert int(value) % 4 == place % 4
            assert int(value) // 4 == int(order[place - place % 4]) // 4


def test_baselines_against_arithmetic_by_hand() -> None:
    groups = [(f"p{i}", comparison) for i in range(3) for comparison in ("gt", "lt")]
    labels = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.7, 0.3], dtype=torch.float64)
    families = torch.tensor([0, 0, 1, 1, 2, 2])
    folds = split_families(3, ProbeSettings())
    plain, compared = (baseline(labels, groups, families, folds, by) for by in (False, True))
    assert plain == pytest.approx((0.4**2 + 0.3**2 + 0.2**2) / 3)
    assert compared == pytest.approx((0.15**2 + 0.0 + 0.15**2) / 3)


@pytest.mark.parametrize("shape", [(40, 6), (12, 30)])
def test_ridge_against_scikit_learn(shape: tuple[int, int]) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    draw = torch.Generator().manual_seed(0)
    x, other = (torch.randn(n, shape[1], generator=draw, dtype=torch.float64) for n in (shape[0], 5))
    y, weight = (torch.rand(shape[0], n, generator=draw, dtype=torch.float64) for n in (2, 1))
    own = ridge_path(x, y, weight[:, 0], other, [0.01, 3.0])
    share = weight[:, 0] / weight.sum()
    centre = share @ x
    scale = (share @ (x - centre) ** 2).sqrt()
    # The trace of the covariance of scaled features is their number.
    unit = shape[1] / min(shape)
    for penalty, found in zip([0.01, 3.0], own, strict=True):
        fitted = linear_model.Ridge(alpha=penalty * unit).fit(((x - centre) / scale).numpy(), y.numpy(), share.numpy())
        torch.testing.assert_close(found, torch.from_numpy(fitted.predict(((other - centre) / scale).numpy())))


def test_features_that_do_not_vary_in_training_are_ignored() -> None:
    x = torch.ones(6, 3, dtype=torch.float64)
    y = torch.arange(6, dtype=torch.float64)[:, None]
    other = torch.full((2, 3), 9.0, dtype=torch.float64)
    assert ridge_path(x, y, torch.ones(6).double(), other, [0.1])[0, :, 0].tolist() == pytest.approx([2.5, 2.5])


def test_activations_that_say_nothing_are_never_better_than_shuffled() -> None:
    _, templates, bias = planted(6, 8, 1.0)
    found = probe_biases({"same": torch.full((len(templates), 8), 0.1)}, templates, bias, QUICK)
    assert found.probes[0].p == found.probes[0].p_best == 1
    assert found.probes[0].fvu == pytest.approx(found.fvu_mean)


def test_bias_is_that_of_the_criterion_and_unknown_groups_are_left_out() -> None:
    questions, judged = answered(mirrored_questions(2), [(9, 8), (6, 5)])
    scored = score(questions, judged)
    assert template_biases(scored, "m") == {("sizes", "gt"): pytest.approx(0.7)}
    with pytest.raises(InputError, match="answers of 'm'"):
        template_biases(scored, "n")
    x, templates, bias = planted(5, 8, 1.0)
    found = probe_biases({"x": torch.cat([x, x[:3]])}, [*templates, *[("other", "gt")] * 3], bias, QUICK)
    assert found.left_out == 3
    assert found.questions == len(templates)


def test_bad_input_is_refused_in_sentences() -> None:
    x, templates, bias = planted(4, 8, 1.0)
    with pytest.raises(InputError, match="one row for each of the 64 questions"):
        probe_biases({"x": x[1:]}, templates, bias)
    with pytest.raises(InputError, match="not finite"):
        probe_biases({"x": x.log()}, templates, bias)
    with pytest.raises(InputError, match="no activations"):
        probe_biases({}, templates, bias)
    with pytest.raises(InputError, match="None of the questions"):
        probe_biases({"x": x}, templates, {})
    with pytest.raises(InputError, match="lean alike"):
        probe_biases({"x": x}, templates, dict.fromkeys(bias, 0.5))
    with pytest.raises(InputError, match="between 0 and 1"):
        probe_biases({"x": x}, templates, {key: 100 * value for key, value in bias.items()})
    with pytest.raises(InputError, match="There are 2 properties"):
        probe_biases({"x": x[:32]}, templates[:32], bias)
    with pytest.raises(InputError, match="9 folds were asked for, but there are 4"):
        probe_biases({"x": x}, templates, bias, ProbeSettings(folds=9))
    with pytest.raises(InputError, match="one is left to train on"):
        split_families(3, ProbeSettings(folds=2))
    for wrong in ({"folds": 1}, {"validation": 0.0}, {"shuffles": -1}, {"penalties": ()}, {"penalties": (0.0,)}):
        with pytest.raises(InputError):
            ProbeSettings(**wrong)  # pyright: ignore[reportArgumentType]


# --- activations of a model -------------------------------------------------------------------------------------------


def test_activations_are_those_of_the_named_tokens(world: LanguageModel) -> None:
    texts = ["Is the raft slower than the snail?", "about rivers:\n\nIs the Elbe longer than the Rhine? Say YES or NO"]
    sites = ["layers.0.resid_pre", "layers.1.resid_post"]
    found = prompt_activations(world, texts, sites, ["before_last", "last"], batch_size=1)
    assert list(found) == [f"{site} at {name}" for site in sites for name in ("before_last", "last")]
    together = prompt_activations(world, texts, sites, ["last"])
    for row, text in enumerate(texts):
        batch = world.tokenize([text], 128)
        for site, values in world.harvest(batch, sites).items():
            torch.testing.assert_close(found[f"{site} at last"][row], values[0, -1])
            torch.testing.assert_close(found[f"{site} at before_last"][row], values[0, -2])
            torch.testing.assert_close(together[f"{site} at last"][row], values[0, -1], atol=1e-4, rtol=1e-4)
    # A name that stands for a token gives the embedding of that token.
    marked = prompt_activations(world, texts[1:], sites[:1], ["colon", "question_mark", "yes", "no"])
    for name, character in (("colon", ":"), ("question_mark", "?"), ("yes", "S"), ("no", "O")):
        batch = world.tokenize(texts[1:], 128)
        at = texts[1].index(":") if character == ":" else texts[1].rindex(character)
        assert batch.offsets is not None
        (place,) = [i for i, (start, end) in enumerate(batch.offsets[0]) if start <= at < end]
        expected = world.harvest(batch, sites[:1])[sites[0]][0, place]
        torch.testing.assert_close(marked[f"{sites[0]} at {name}"][0], expected)


def test_a_prompt_with_instructions_has_all_positions_in_order(world: LanguageModel) -> None:
    text = subject_prompt("about rivers:\n\nIs the Elbe longer than the Rhine?", "cot")
    found = prompt_activations(world, [text], ["layers.0.resid_pre"], POSITIONS, chat=True)
    assert len(found) == len(POSITIONS) == 11


def test_prompts_and_positions_that_do_not_fit_are_refused(world: LanguageModel) -> None:
    site, text = ["layers.0.resid_pre"], "Is the raft slower than the snail?"
    for texts, positions, words in (
        ([], ["last"], "no texts"),
        ([text], [], "no positions"),
        ([text], ["lst"], "no position 'lst'"),
        ([text], ["reasoning"], "no token for the position 'reasoning'"),
        ([text], ["question_mark_next"], "no token for the position"),
        ([text], ["question_mark", "last"], "'last' does not lie after 'question_mark'"),
        ([text * 40], ["last"], "reads at most 128"),
    ):
        with pytest.raises(InputError, match=words):
            prompt_activations(world, texts, site, positions)


def test_the_command_probes_stored_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = world_questions(pairs=1)
    judged = [
        one for i, question in enumerate(questions) for one in answers(question, 3 + i % 5, 7 - i % 5, model="asked")
    ]
    write_study(tmp_path / "answers", Study(questions, [], judged))
    command = ["cot", "probe", str(tmp_path / "answers"), "--model", "world:base", "--prompt", "plain"]
    command += ["--site", "layers.1.resid_post", "--site", "layers.2.resid_post", "--shuffles", "4"]
    assert main([*command, "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["eval_result_metrics"]["data"] == {"templates": 24, "properties": 6, "questions": len(questions)}
    names = [one["name"] for one in found["eval_result_details"]]
    assert names == ["layers.1.resid_post at last", "layers.2.resid_post at last"]
    assert found["eval_result_metrics"]["probe"]["best_fvu"] == min(one["fvu"] for one in found["eval_result_details"])
    assert len(list((tmp_path / "out").rglob("*_eval_results.json"))) == 1
    assert main([*command, "--answers-of", "nobody"]) == 2
    assert "answers of 'asked'" in capsys.readouterr().err
