"""The page of a comparison: what is drawn and marked, and that it loads nothing and runs nothing."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from saeworks.errors import InputError
from saeworks.results.comparison import sweeps
from saeworks.results.comparison_plots import front_figure, round_ticks, sweep_figures, trained_series
from saeworks.results.comparison_report import Comparison, facts_of, l0_values_of, metrics_of, render, write_comparison
from saeworks.results.envelope import Result
from saeworks.results.gathering import gather
from saeworks.results.readings import readings

NOTHING = {
    "control": None,
    "source": "saeworks",
    "mode": "corrected",
    "model": "m",
    "site": "s",
    "tokens": 1,
    "seed": 0,
}


def row(name, architecture, width, l0, probe, absorption=None, **more):
    low, high = {}, {}
    if probe is not None:
        low, high = {"probe_k1_low": probe - 0.02}, {"probe_k1_high": probe + 0.02}
    numbers = {"l0": l0, "probe_k1": probe, "absorption": absorption, "ce_loss_score": 0.9 + l0 / 10000}
    return {
        **{**NOTHING, "dictionary": name, "architecture": architecture, "width": width, "setting": l0},
        **{**numbers, **low, **high, **more},
    }


@pytest.fixture
def rows():
    found = []
    for width in (1024, 4096):
        for i, l0 in enumerate((16.0, 32.0, 64.0)):
            found.append(row(f"topk_{width}_{i}", "topk", width, l0, 0.7 + i / 100, 0.3 + i / 10))
            found.append(row(f"jump_{width}_{i}", "jumprelu", width, l0 + 1, 0.75 + i / 100, 0.2 + i / 10))
    controls = [
        row("control_identity", "identity", 256, 256.0, 0.3, control="identity", setting=None),
        row("control_oracle", "jumprelu", 300, 3.0, 0.8, 0.0, control="oracle", setting=None),
        row("control_random_directions_n1024_k16", "topk", 1024, 16.0, 0.55, 0.9, control="random_directions"),
        row("control_random_directions_n1024_k64", "topk", 1024, 64.0, 0.57, 0.8, control="random_directions"),
        row("control_permuted_decoder_a", "topk", 1024, 16.0, None, 0.95, control="permuted_decoder"),
    ]
    return [*found, *controls]


def test_a_number_stands_between_the_best_degraded_control_and_its_ceiling(rows):
    found = {reading["number"]: reading for reading in readings(rows)}
    assert found["probe_k1"] == {
        **{"number": "probe_k1", "better": "more", "worst": 0.7, "best": 0.77, "floor": 0.57, "ceiling": 0.8},
        **{"floor_of": "control_random_directions_n1024_k64", "ceiling_of": "control_oracle"},
    }
    # Of absorption less is better: the worst is the most, and the best of the floors the least.
    absorption = found["absorption"]
    assert (absorption["floor"], absorption["worst"], absorption["best"]) == (0.8, 0.5, 0.2)
    assert found["ce_loss_score"]["ceiling_of"] == "control_identity"
    assert "l0" not in found
    assert readings([r for r in rows if not r["control"]]) == []


def test_one_panel_per_width_one_line_per_architecture_and_controls_across(rows):
    first, second = sweep_figures(rows, "probe_k1")
    assert "1 024 latents" in first
    assert "4 096 latents" in second
    for drawn in (first, second):
        names = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
        assert {"topk", "jumprelu", "oracle"} <= set(names), names
        assert "Off the plot: identity 0.3." in drawn
    # Random directions are of one width; both of their L0s make a line there.
    assert "random directions" in first
    assert "random directions" not in second
    assert "permuted decoder" not in first, "it has no such number"
    ET.fromstring(re.search(r"<svg.*</svg>", first, re.DOTALL).group())


def test_bars_are_the_intervals_and_span_those_of_averaged_seeds(rows):
    series = {
        s.name: s for s in trained_series([r for r in rows if r["width"] == 1024 and not r["control"]], "probe_k1")
    }
    assert series["topk"].low == pytest.approx([0.68, 0.69, 0.70])
    assert series["topk"].high == pytest.approx([0.72, 0.73, 0.74])
    seeds = [row("a", "topk", 8, 16.0, 0.7), {**row("b", "topk", 8, 16.0, 0.8), "seed": 1}]
    (averaged,) = trained_series(seeds, "probe_k1")
    assert (averaged.y, averaged.low, averaged.high) == (
        pytest.approx((0.75,)),
        pytest.approx([0.68]),
        pytest.approx([0.82]),
    )


def test_controls_are_no_sweep_of_what_was_trained(rows):
    labels = {s.label for s in sweeps(rows, "probe_k1")}
    assert "random_directions, topk, 1024" in labels
    assert "topk, 1024" in labels
    assert len([s for s in sweeps(rows, "probe_k1") if s.kind.get("control") is None]) == 4


def test_the_front_joins_what_nothing_dominates(rows):
    figure, front = front_figure(rows, "absorption")
    assert [r["dictionary"] for r in front] == ["topk_1024_0", "topk_4096_0", "jump_1024_0", "jump_4096_0"]
    assert "front" in figure
    # Up and to the right where more of both is better.
    _, front = front_figure(rows, "probe_k1", "ce_loss_score")
    assert {r["dictionary"] for r in front} == {"jump_1024_2", "jump_4096_2"}
    assert front_figure(rows[:1], "probe_k1") == ("", [])


def test_ticks_are_round_and_few():
    assert round_ticks(7.9, 23.6) == [8.0, 10.0, 20.0]
    for low, high in ((0.5, 900.0), (20.0, 640.0), (16.0, 17.0), (3.0, 3.0)):
        ticks = round_ticks(low, high)
        assert 1 <= len(ticks) <= 7
        assert ticks == sorted(ticks)


def test_l0s_to_compare_at_are_those_of_the_suite_or_finer_ones():
    assert l0_values_of(sweeps([row(str(x), "t", 8, x, 0.5) for x in (16.0, 400.0)], "probe_k1")) == (
        20,
        40,
        80,
        160,
        320,
    )
    assert l0_values_of(sweeps([row(str(x), "t", 8, x, 0.5) for x in (7.9, 23.6)], "probe_k1")) == (8, 10, 20)
    assert l0_values_of([]) == ()


def test_the_page_needs_no_network_and_escapes_what_it_shows(rows, tmp_path):
    rows[0]["dictionary"] = "<script>alert(1)</script>"
    rows[1]["architecture"] = "a$b$<i>"
    comparison = Comparison("<b>", rows, facts_of(rows), ["A & B"], {"scr of x": "labels too rare"})
    text = write_comparison(tmp_path / "page.html", comparison).read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "<i>" not in text
    assert "default-src 'none'" in text
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', text), "nothing is loaded or linked"
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "Labels too rare." in text
    assert "A &amp; B" in text
    for title in ("All dictionaries", "Between floor and ceiling", "Scores against sparsity", "Not measured"):
        assert f">{title}</h2>" in text


def test_the_best_at_a_matched_l0_is_marked_the_right_way(rows):
    rows = [r for r in rows if r["width"] == 1024 and not r["control"]]
    text = render(Comparison("t", rows, metrics=["absorption"], l0_values=[32.0]))
    table = text[text.index("At matched L0") :]
    marked = re.findall(r"<tr><th>([^<]*)</th><td class=\"best\">([\d.]+)", table)
    assert [name for name, _ in marked] == ["jumprelu"], "less absorption is better"
    assert metrics_of(rows)[0].column == "ce_loss_score"


def test_results_from_two_places_are_told_apart(tmp_path):
    def put(place: str, name: str, weights: str, l0: float, when: int) -> None:
        result = Result(
            eval_type_id="core",
            eval_config={},
            eval_result_metrics={"sparsity": {"l0": l0}},
            ci95={"sparsity.l0": (l0 - 1, l0 + 1)},
            sae_lens_id=name,
            definition_id="saeworks/core/2",
            provenance={"hashes": {"dictionary": weights}},
            datetime_epoch_millis=when,
        )
        result.write(tmp_path / place)

    put("one", "a", "first", 10, 1)
    put("two", "a", "second", 20, 1)
    put("one", "same", "third", 30, 2)
    put("two", "same", "third", 31, 1)
    rows, notes = gather([tmp_path / "one", tmp_path / "two"])
    assert {r["dictionary"]: r["l0"] for r in rows} == {"one/a": 10, "same": 30, "two/a": 20}
    assert (rows[0]["l0_low"], rows[0]["l0_high"]) == (9, 11)
    assert len(notes) == 1
    assert "'same' was measured by core twice" in notes[0]
    with pytest.raises(InputError, match="does not exist"):
        gather([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no result file"):
        gather([tmp_path / "empty"])
    assert isinstance(gather([Path(tmp_path / "one" / "core" / "a_eval_results.json")])[0], list)
