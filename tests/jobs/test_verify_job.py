"""``verify``: a dictionary at its own site passes; a wrong site, scale, loading, claim or model is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.dictionaries.formats.registry import write
from saeworks.errors import InputError
from saeworks.jobs.verify import CLEARLY_BETTER, Reading, verify
from saeworks.models.language_model import load_language_model

SITE, OTHER = "layers.1.resid_post", "layers.1.mlp_out"
COMPONENTS, LATENTS = 3, 64


def activations(model_directory: Path, texts: Path, *sites: str) -> list[torch.Tensor]:
    import csv

    model = load_language_model(model_directory, device="cpu")
    with open(texts, newline="", encoding="utf-8") as f:
        batch = model.tokenize([row["text"] for row in csv.DictReader(f)][:200], 32)
    found = model.harvest(batch, list(sites))
    return [found[site][batch.keep] for site in sites]


def components(x: torch.Tensor, y: torch.Tensor | None = None, **settings: object) -> Dictionary:
    """A dictionary of both directions of the first principal components, and of latents that are never active.

    With targets ``y`` its decoder is the best linear one: a transcoder.
    """
    mean = x.mean(0)
    basis = torch.linalg.svd(x - mean, full_matrices=False).Vh[:COMPONENTS]
    W_enc = torch.zeros(x.shape[1], LATENTS)
    W_enc[:, :COMPONENTS], W_enc[:, COMPONENTS : 2 * COMPONENTS] = basis.T, -basis.T
    W_dec = torch.randn(LATENTS, x.shape[1] if y is None else y.shape[1], generator=torch.Generator().manual_seed(0))
    own = basis if y is None else torch.linalg.lstsq((x - mean) @ basis.T, y - y.mean(0)).solution
    W_dec[:COMPONENTS], W_dec[COMPONENTS : 2 * COMPONENTS] = own, -own
    threshold = torch.full((LATENTS,), 1e6)
    threshold[: 2 * COMPONENTS] = 0
    base = {"architecture": "jumprelu", "d_in": x.shape[1], "d_sae": LATENTS, "apply_b_dec_to_input": y is None}
    cfg = DictionaryConfig.model_validate({**base, "d_out": None if y is None else y.shape[1], **settings})
    b_enc = torch.zeros(LATENTS) if y is None else -(mean @ W_enc)
    return Dictionary(cfg, W_enc, W_dec, b_enc, mean if y is None else y.mean(0), threshold)


@pytest.fixture(scope="module")
def x(tiny_model_directory: Path, tiny_texts: Path) -> torch.Tensor:
    return activations(tiny_model_directory, tiny_texts, SITE)[0]


def check(d: Dictionary, path: Path, model: Path | None, texts: Path, **about: object) -> dict:
    """The report on ``d``, saved with further metadata."""
    d.replace(metadata=about).save(path)
    reading = Reading(data=(str(texts),), tokens=1500, context_length=32)
    return verify(str(path), model=str(model) if model else None, reading=reading, device="cpu")


def test_at_its_own_site_nothing_speaks_against_it(x, tiny_model_directory, tiny_texts, tmp_path) -> None:
    d = components(x)
    recorded = d.verify(x)["measured"]
    report = check(d, tmp_path / "d", tiny_model_directory, tiny_texts, site=SITE, recorded=recorded)
    assert (report["ok"], report["problems"], report["notes"]) == (True, [], [])
    assert report["measured"]["explained_variance"] == pytest.approx(recorded["explained_variance"], abs=0.05)
    assert report["measured"]["l0"] == pytest.approx(COMPONENTS)
    # A residual stream hardly changes in one layer: its neighbours may be explained as well, but not clearly better.
    assert report["sites"][SITE] > max(report["sites"].values()) - CLEARLY_BETTER
    assert {OTHER, "layers.0.resid_post", "layers.1.attn_out"} <= set(report["sites"])
    assert report["format"] == "saeworks"
    assert report["decoder_norm"]["min"] > 0


def test_the_model_that_the_files_name_is_taken(x, tiny_model_directory, tiny_texts, tmp_path) -> None:
    about = {"site": SITE, "model_name": str(tiny_model_directory)}
    report = check(components(x), tmp_path / "d", None, tiny_texts, **about)
    assert report["ok"]
    assert report["measured"]["tokens"] >= 1500


def test_another_site_is_named_when_it_is_explained_better(x, tiny_model_directory, tiny_texts, tmp_path) -> None:
    report = check(components(x), tmp_path / "d", tiny_model_directory, tiny_texts, site=OTHER)
    assert not report["ok"]
    best = max(report["sites"], key=report["sites"].get)
    assert best.endswith(("resid_post", "resid_pre"))
    assert report["sites"][SITE] > report["sites"][OTHER] + 0.1
    assert any(f"It explains '{best}' better" in sentence for sentence in report["problems"])


MISTAKES = {
    "another scale": (lambda d: d.replace(W_dec=d.W_dec * 8), "explained variance"),
    "a scale of 1.5": (lambda d: d.replace(W_dec=d.W_dec * 1.5), "multiplied by 0.6"),
    "half the scale": (lambda d: d.replace(W_dec=d.W_dec / 2), "multiplied by 2.0"),
    "a tenth of the scale": (lambda d: d.replace(W_dec=d.W_dec / 10), "multiplied by"),
    "a lost bias": (lambda d: d.replace(b_enc=d.b_enc + 1.0), "multiplied by"),
    "a matrix read in the other order": (
        lambda d: d.replace(W_dec=d.W_dec.T.reshape(LATENTS, -1)),
        "explained variance",
    ),
    "a forgotten pre-bias": (lambda d: d.replace({"apply_b_dec_to_input": False}), "explained variance"),
    "lost thresholds": (lambda d: d.replace(threshold=torch.zeros(LATENTS), b_enc=d.b_enc + 1), "no sparse code"),
    "another model": (lambda d: d.replace(metadata={"model_fingerprint": "0" * 64}), "other weights"),
    "another L0": (lambda d: d.replace(metadata={"claimed": {"l0": 71.0}}), "71.0 is claimed"),
    "another fit": (lambda d: d.replace(metadata={"claimed": {"explained_variance": 1.3}}), "1.300 is claimed"),
    "what was recorded": (
        lambda d: d.replace(metadata={"recorded": {"l0": 30.0, "explained_variance": 0.9, "tokens": 1.0}}),
        "30.0 was recorded",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_a_problem(mistake, x, tiny_model_directory, tiny_texts, tmp_path) -> None:
    change, words = MISTAKES[mistake]
    d = components(x + 3.0)
    d = change(d.replace(b_dec=d.b_dec - 3.0) if mistake != "a forgotten pre-bias" else d)
    report = check(d, tmp_path / "d", tiny_model_directory, tiny_texts, site=SITE)
    assert not report["ok"]
    assert any(words in sentence for sentence in report["problems"]), report["problems"]


def test_a_foreign_dictionary_is_checked_as_any_other(x, tiny_model_directory, tiny_texts, tmp_path) -> None:
    about = {"model_name": str(tiny_model_directory), "site": SITE}
    write(components(x).replace(metadata=about), tmp_path / "sae", "saelens")
    reading = Reading(data=(str(tiny_texts),), tokens=500)
    report = verify(str(tmp_path / "sae"), reading=reading, device="cpu")
    assert (report["ok"], report["format"]) == (True, "saelens")


def test_a_transcoder_is_measured_on_what_it_predicts(tiny_model_directory, tiny_texts, tmp_path) -> None:
    x, y = activations(tiny_model_directory, tiny_texts, "layers.1.resid_pre", OTHER)
    good = check(
        components(x, y), tmp_path / "d", tiny_model_directory, tiny_texts, site="layers.1.resid_pre", site_out=OTHER
    )
    assert good["ok"], good["problems"]
    assert good["measured"]["explained_variance"] > 0.05
    wrong = components(x, -y)
    bad = check(wrong, tmp_path / "e", tiny_model_directory, tiny_texts, site="layers.1.resid_pre", target_site=OTHER)
    assert any("below what the mean" in sentence for sentence in bad["problems"])


def test_a_crosscoder_is_measured_on_all_its_sources(tiny_model_directory, tiny_texts, tmp_path) -> None:
    sites = ("layers.0.resid_post", "layers.1.resid_post")
    x = torch.cat(activations(tiny_model_directory, tiny_texts, *sites), dim=1)
    report = check(components(x, sources=sites), tmp_path / "d", tiny_model_directory, tiny_texts)
    assert report["ok"], report["problems"]
    assert list(report["sites"]) == ["+".join(sites)]


@pytest.mark.parametrize(("about", "word"), [({"site": SITE}, "model"), ({"model_name": "some-one/model"}, "site")])
def test_without_a_model_or_a_site_only_the_weights_are_looked_at(about, word, x, tiny_texts, tmp_path) -> None:
    report = check(components(x), tmp_path / "d", None, tiny_texts, **about)
    assert (report["ok"], report["measured"]) == (True, None)
    assert f"give one with --{word}" in report["notes"][0]
    dead = components(x)
    dead.decoder[5] = 0
    report = check(dead, tmp_path / "e", None, tiny_texts, **about)
    assert not report["ok"]
    assert "1 decoder rows are zero" in report["problems"][0]


def test_claims_are_not_held_against_it_on_the_simple_texts_of_the_world(x, tiny_model_directory, tmp_path) -> None:
    components(x).replace(metadata={"site": SITE, "claimed": {"l0": 71.0}}).save(tmp_path / "d")
    report = verify(str(tmp_path / "d"), model=str(tiny_model_directory), reading=Reading(tokens=300), device="cpu")
    assert any("embedded world" in note for note in report["notes"])
    assert any("71.0 is claimed" in note for note in report["notes"])
    assert not any("claimed" in problem for problem in report["problems"])


def test_a_model_of_another_width_is_a_sentence(tiny_model_directory, tiny_texts, tmp_path) -> None:
    d = components(torch.randn(50, 24, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(InputError, match=r"width 24, but .* has layers\.1\.resid_post \(16\)"):
        check(d, tmp_path / "d", tiny_model_directory, tiny_texts, site=SITE)


def test_nothing_to_measure_on_is_a_sentence(tmp_path) -> None:
    with pytest.raises(InputError, match="tokens is 0"):
        verify(str(tmp_path), reading=Reading(tokens=0))
