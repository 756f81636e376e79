"""Composites are explained, random directions are not; both modes' definitions and where they differ."""

import pytest
import torch

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.errors import InputError
from saeworks.evals import meta_structure
from saeworks.evals.meta_structure import Config, Data, rows_of
from saeworks.evals.structure.decoder_structure import (
    Training,
    explained,
    gaussian_rows,
    least_selected,
    meta_width,
    residuals,
    train,
)
from saeworks.world.synthetic import CompositionalFeatures

SITE = "layers.0.resid_post"
FAST = Config(seeds=(0,), train_steps=250, train_batch_size=128, learning_rate=3e-3, k=2.0, resamples=50)


def test_fraction_by_hand():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [1.0, 1.0]])
    rebuilt = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 1.0], [1.0, 1.0]])
    found = residuals(rows, rebuilt)
    assert found.fraction() == pytest.approx(1 - 2 / 4)  # squared distances from (1, 1): 1, 1, 2, 0
    assert found.mse() == pytest.approx(2 / 8)
    assert residuals(rows, rows).fraction() == 1.0
    assert residuals(rows, torch.ones(4, 2)).fraction() == 0.0
    assert residuals(torch.ones(3, 2), torch.zeros(3, 2)).fraction() == 0.0  # nothing to explain


def test_widths():
    assert meta_width(1000, 0.25, 4) == 250
    assert meta_width(1001, 0.25, 4) == 251
    assert meta_width(8, 0.25, 4) == 5


def test_least_selected_is_that_of_all_parts():
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(5, 6, generator=draw).relu() for _ in range(3)]
    values = torch.cat([part.flatten() for part in parts]).sort(descending=True).values
    assert least_selected(parts, 7) == float(values[6])
    assert least_selected(iter(parts), 1000) == float(values[values > 0][-1])
    assert least_selected([torch.zeros(2, 2)], 3) == 0.0


def world_rows():
    """208 unit rows in 64 dimensions: 144 sums of two of 24 attributes, and 64 directions on their own."""
    rows = CompositionalFeatures().composite_directions
    return torch.nn.functional.normalize(rows, dim=-1)


def training(rows, mode="corrected", steps=400, seed=0):
    return Training(len(rows) // 4, 2.0, steps, 256, 3e-3, seed, mode)


@pytest.fixture(scope="module")
def planted():
    rows = world_rows()
    return rows, train(rows, training(rows))


def test_composites_are_explained_and_random_rows_are_not(planted):
    rows, member = planted
    found = explained(member, rows, "corrected")
    random = gaussian_rows(*rows.shape, seed=0)
    control = explained(train(random, training(random)), random, "corrected")
    assert found.fraction() > 0.8
    assert control.fraction() < 0.6
    assert found.fraction() - control.fraction() > 0.3
    assert found.l0 == pytest.approx(2.0, abs=0.01)
    assert control.l0 == pytest.approx(2.0, abs=0.01)


def test_compat_depends_on_how_the_rows_are_cut(planted):
    rows, member = planted
    compat = {size: explained(member, rows, "compat", size) for size in (len(rows), 16, 1)}
    assert compat[len(rows)].fraction() == pytest.approx(explained(member, rows, "corrected").fraction(), abs=1e-4)
    assert compat[1].fraction() < compat[16].fraction() < compat[len(rows)].fraction()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    permuted = explained(member, rows[order], "corrected").fraction()
    assert permuted == pytest.approx(explained(member, rows, "corrected").fraction(), abs=1e-6)
    assert explained(member, rows[order], "compat", 16).fraction() != pytest.approx(compat[16].fraction(), abs=1e-5)


def test_training_of_the_modes():
    compat, corrected = training(world_rows(), "compat").recipe(), training(world_rows()).recipe()
    assert compat.constraint == "free"
    assert compat.norm_weighted
    assert corrected.constraint == "unit"
    schedule = compat.schedule(1500)
    assert {schedule.multiplier(step) for step in (0, 1, 700, 1499)} == {1.0}
    # The published window for dead latents is longer than the run, so that none is ever revived.
    rows = world_rows()
    for mode, revived in (("compat", False), ("corrected", True)):
        member = train(rows, Training(200, 1.0, 110, 8, 1e-4, 0, mode))
        assert bool(len(member.dead())) is revived


def test_compat_explains_composites_too():
    rows = world_rows()
    found = explained(train(rows, training(rows, "compat")), rows, "compat")
    assert found.fraction() > 0.6


def test_rows():
    decoder = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    assert torch.equal(rows_of(decoder, None, "compat"), decoder)
    assert rows_of(decoder, None, "corrected").tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 1], [1, 0]]
    alive = torch.tensor([True, True, False, True])
    assert len(rows_of(decoder, alive, "corrected")) == 2
    assert len(rows_of(decoder, alive, "compat")) == 4


def dictionary_of(rows, scale=None):
    cfg = DictionaryConfig(architecture="relu", d_in=rows.shape[1], d_sae=len(rows), metadata={"site": SITE})
    decoder = rows if scale is None else rows * scale[:, None]
    return Dictionary(cfg, rows.T, decoder, torch.zeros(len(rows)), torch.zeros(rows.shape[1]))


def test_run_and_norms(model):
    """Lengths of rows change what compat explains, and nothing of what corrected does."""
    draw = torch.Generator().manual_seed(0)
    atoms = gaussian_rows(12, 16, 1)
    pairs = torch.nn.functional.normalize(
        torch.stack([atoms[i] + atoms[j] for i in range(12) for j in range(i)]), dim=1
    )
    scale = 0.2 + 5 * torch.rand(len(pairs), generator=draw)
    dictionaries = {"a": dictionary_of(pairs), "b": dictionary_of(pairs, scale)}
    results = meta_structure.run(dictionaries, model, Data(), FAST)
    for key, value in results["a"].eval_result_metrics["meta_structure"].items():
        if key != "train_time_seconds":
            assert results["b"].metric("meta_structure", key) == pytest.approx(value, abs=2e-3), key
    result = results["a"]
    fraction = result.metric("meta_structure", "decoder_fraction_variance_explained")
    control = result.metric("meta_structure", "gaussian_fraction_variance_explained")
    assert result.metric("meta_structure", "excess_fraction_variance_explained") == pytest.approx(fraction - control)
    assert result.metric("meta_structure", "rows") == 66
    assert result.metric("meta_structure", "meta_width") == 17
    low, high = result.ci95["meta_structure.decoder_fraction_variance_explained"]
    assert low < fraction < high
    compat = meta_structure.run(dictionaries, model, Data(), FAST.model_copy(update={"mode": "compat"}))
    values = [compat[name].metric("meta_structure", "decoder_fraction_variance_explained") for name in "ab"]
    assert abs(values[0] - values[1]) > 0.01
    assert compat["a"].metric("meta_structure", "excess_fraction_variance_explained") is None


def test_latents_that_never_fire_are_left_out(model, make_sentences, make_dictionary):
    dictionary = make_dictionary(width=24, k=6)
    bias = dictionary.b_enc.clone()
    bias[::2] = -1e6
    half = dictionary.replace(b_enc=bias)
    quick = FAST.model_copy(update={"train_steps": 5})
    data = Data(make_sentences(30))
    found = meta_structure.run({"half": half}, model, data, quick)["half"]
    assert found.metric("meta_structure", "rows") <= 12
    everything = meta_structure.run({"half": half}, model, Data(), quick)["half"]
    assert everything.metric("meta_structure", "rows") == 24
    silent = dictionary.replace(b_enc=torch.full((24,), -1e6))
    with pytest.raises(InputError, match="0 decoder rows of latents that fire"):
        meta_structure.run({"silent": silent}, model, data, quick)


def test_transcoders_have_rows_as_well(model):
    cfg = DictionaryConfig(
        architecture="relu", d_in=16, d_sae=12, d_out=8, apply_b_dec_to_input=False, metadata={"site": SITE}
    )
    rows = gaussian_rows(12, 8, 0)
    transcoder = Dictionary(cfg, torch.ones(16, 12), rows, torch.zeros(12), torch.zeros(8))
    quick = FAST.model_copy(update={"train_steps": 5})
    result = meta_structure.run({"t": transcoder}, model, Data(), quick)["t"]
    assert result.metric("meta_structure", "rows") == 12


def test_data(model, make_sentences):
    assert not meta_structure.default_data(model, Config()).texts  # the world's texts say nothing of other models
    world = type("Named", (), {"name": "world"})()
    assert len(meta_structure.default_data(world, Config(alive_texts=3)).texts) == 3
    assert not meta_structure.default_data(world, Config(mode="compat")).texts
    own = meta_structure.from_documents({"a": make_sentences(5)}, "label", model, Config(alive_texts=2))
    assert len(own.texts) == 2
    assert meta_structure.data_hashes(own, FAST) != meta_structure.data_hashes(Data(), FAST)
