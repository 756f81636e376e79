"""Counts, classes, twins, divergence and rankings against counting by hand and known cases."""

from __future__ import annotations

import math

import pytest
import torch
from planted_dictionary import planted
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.diffing import latent_scaling
from saeworks.diffing.classes import (
    CLASSES,
    RELAXED,
    Thresholds,
    classes,
    decoder_cosine,
    flags,
    relative_norm,
    source_shares,
)
from saeworks.diffing.divergence import DivergenceCounts
from saeworks.diffing.latent_pass import measure_latents
from saeworks.diffing.latent_stats import BINS, LatentStatistics, bin_edges
from saeworks.diffing.latent_table import TEXT_COLUMNS, latent_table
from saeworks.diffing.pairs import PairedBatch, synthetic_source
from saeworks.diffing.ranking import by_rank_sum, by_size, curve, halves, inside_baseline, shared_baseline
from saeworks.diffing.scaling_estimates import Ratio
from saeworks.diffing.twins import false_twins, find_twins
from saeworks.errors import InputError
from saeworks.world.synthetic.paired import PairedFeatures


def paired(x: Tensor, data_set: str, template: list[int] = [], answer: list[int] = []) -> PairedBatch:  # noqa: B006
    tokens = len(x)
    numbers = torch.arange(tokens)
    is_template = torch.zeros(tokens, dtype=torch.bool)
    is_template[template] = True
    answers = torch.full((tokens,), -1)
    answers[answer] = torch.arange(len(answer))
    return PairedBatch((x, x + 1), numbers, numbers // 4, numbers % 4, is_template, answers, data_set)


def ratio(values: list[float], errors: float = 0.0, rare: list[bool] | None = None) -> Ratio:
    value = torch.tensor(values, dtype=torch.float64)
    none = torch.zeros(len(values), dtype=torch.bool)
    return Ratio(
        value, torch.full_like(value, errors), value.isnan(), none if rare is None else torch.tensor(rare), none
    )


def test_statistics_are_those_of_counting() -> None:
    draw = torch.Generator().manual_seed(0)
    norms = torch.tensor([[1.0, 2.0, 0.5], [1.0, 0.0, 0.5]])
    parts = {name: torch.relu(torch.randn(40, 3, generator=draw)) for name in ("base", "chat")}
    parts["base"][:, 2] = 0
    x = {name: torch.randn(40, 2, generator=draw) + 3 for name in parts}
    statistics = LatentStatistics(norms, (2, 2))
    for name, f in parts.items():
        template, answer = ([0, 1, 2], [2, 3, 4, 5]) if name == "chat" else ([], [])
        batch = paired(x[name], name, template, answer)
        statistics.add(batch, Codes.from_dense(f), [0.1 * batch.x[0], 0.5 * torch.ones(40, 2)])
    v = {name: f * norms.sum(dim=0) for name, f in parts.items()}
    both = torch.cat(list(v.values()))
    assert statistics.tokens() == 80
    torch.testing.assert_close(statistics.density().float(), (both > 0).float().mean(dim=0))
    torch.testing.assert_close(statistics.density("base").float(), (v["base"] > 0).float().mean(dim=0))
    torch.testing.assert_close(statistics.maximum().float(), both.amax(dim=0))
    torch.testing.assert_close(statistics.mean_active("chat").float(), v["chat"].sum(0) / (v["chat"] > 0).sum(0))
    assert math.isnan(float(statistics.mean_active("base")[2]))
    # Template tokens are 0, 1 and 2; answers 3, 4 and 5, since a template token stays one.
    fired = (v["chat"] > 0).float()
    torch.testing.assert_close(statistics.density(group="template").float(), fired[:3].mean(dim=0))
    torch.testing.assert_close(statistics.density(group="answer").float(), fired[3:6].mean(dim=0))
    torch.testing.assert_close(statistics.template_share("chat").float(), fired[:3].sum(0) / fired.sum(0))
    rows = torch.cat([x["base"], x["chat"]])
    explained = 1 - float((0.1 * rows).square().sum() / (rows - rows.mean(dim=0)).square().sum())
    assert statistics.variance_explained()[0] == pytest.approx(explained, rel=1e-5)
    assert statistics.variance_explained()[1] == pytest.approx(
        1 - 0.25 * 160 / float((rows - rows.mean(dim=0)).square().sum()), rel=1e-5
    )
    histogram, edges = statistics.histogram(), bin_edges()
    assert histogram.shape == (3, BINS)
    for latent in range(3):
        values = both[:, latent][both[:, latent] > 0].double()
        counted = torch.histogram(values, edges)
        assert torch.equal(counted.hist.long()[1:-1], histogram[latent][1:-1])
        assert int(histogram[latent].sum()) == len(values)


def test_merged_statistics_are_those_of_one_pass() -> None:
    draw = torch.Generator().manual_seed(1)
    norms = torch.rand(2, 4, generator=draw)
    batches: list[tuple[PairedBatch, Codes]] = []
    for name in ("base", "chat", "base"):
        f = torch.relu(torch.randn(30, 4, generator=draw))
        batches.append((paired(torch.randn(30, 2, generator=draw), name), Codes.from_dense(f)))
    whole, first, second = (LatentStatistics(norms) for _ in range(3))
    for i, (batch, codes) in enumerate(batches):
        whole.add(batch, codes)
        (first if i == 0 else second).add(batch, codes)
    resumed = LatentStatistics(norms)
    resumed.load_state_dict(first.state_dict())
    merged = resumed + second
    for name in (None, "base", "chat"):
        torch.testing.assert_close(merged.density(name), whole.density(name))
        torch.testing.assert_close(merged.maximum(name), whole.maximum(name))
        assert torch.equal(merged.histogram(name), whole.histogram(name))
    with pytest.raises(InputError, match="Did you mean 'chat'"):
        whole.density("chatt")
    # A latent's gauge changes nothing: twice the code, half the norm.
    other = LatentStatistics(norms / 2)
    for batch, codes in batches:
        other.add(batch, codes.with_values(codes.values * 2))
    torch.testing.assert_close(other.maximum(), whole.maximum())
    assert torch.equal(other.histogram(), whole.histogram())


def test_norm_differences_and_classes() -> None:
    norms = torch.tensor([[0.0, 1.0, 1.0, 0.5, 1.0, 0.0, 0.19, 2.0], [1.0, 0.0, 1.0, 1.0, 0.81, 0.0, 1.0, 1.0]])
    relative = relative_norm(norms)
    # With the ratio ρ = base / chat ≤ 1 the norm difference is 1 − ρ / 2.
    assert relative[:5].tolist() == pytest.approx([1.0, 0.0, 0.5, 0.75, 0.405])
    assert math.isnan(float(relative[5]))
    names = [CLASSES[i] for i in classes(relative).tolist()]
    assert names == ["chat_only", "base_only", "shared", "other", "shared", "other", "chat_only", "other"]
    torch.testing.assert_close(source_shares(norms)[1], relative, equal_nan=True)
    torch.testing.assert_close(relative_norm(norms.flip(0)), 1 - relative, equal_nan=True)
    three = source_shares(torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.05, 1.0]]))
    assert float(three[0, 0]) > 0.9
    assert float(three[1, 0]) == 0.0
    assert three[:, 1].tolist() == pytest.approx([0.25] * 3)
    with pytest.raises(InputError, match="source_shares"):
        relative_norm(torch.ones(3, 2))
    with pytest.raises(InputError, match="must rise"):
        Thresholds(shared=(0.7, 0.6))


def test_cosines_of_what_is_too_short_are_unknown() -> None:
    base = torch.tensor([[1.0, 0.0], [0.0, 0.01], [0.0, 0.0], [3.0, 4.0]])
    chat = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [-3.0, -4.0]])
    cosine = decoder_cosine(base, chat)
    assert cosine.isnan().tolist() == [False, True, True, False]
    assert cosine[[0, 3]].tolist() == pytest.approx([math.sqrt(0.5), -1.0])
    assert bool(decoder_cosine(base, torch.ones(4, 3)).isnan().all())


def test_flags_say_which_failure_it_is() -> None:
    relative = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.7, 1.0, 0.2])
    error = ratio([0.3, 0.0, 0.1, float("nan"), 0.05, -0.9, 0.3])
    held = ratio([0.1, 0.8, -0.1, 0.0, 0.1, 0.0, 0.8])
    found = flags(relative, error, held)
    assert found.words() == ["complete_shrinkage", "decoupled", "genuine", "undefined", "", "", ""]
    assert flags(relative, error, held, RELAXED).words()[4:6] == ["genuine", ""]
    # With an error bar across the line a latent is neither one nor the other.
    assert flags(relative, ratio([0.3] * 7, errors=0.1), held).words()[0] == ""
    exact = Thresholds(standard_errors=0)
    assert flags(relative, ratio([0.3] * 7, errors=0.1), held, exact).words()[0] == "complete_shrinkage"
    rare = flags(relative, ratio([0.0] * 7, rare=[True] * 7), held)
    assert bool(rare.undefined[0])
    assert not bool(rare.genuine.any())


def test_twins_are_one_to_one_and_no_remainder_is_lost() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(23, 32, generator=draw), dim=1)
    base, chat = torch.zeros(46, 32), torch.zeros(46, 32)
    chat[:23], base[23:] = rows * 3, rows + 0.01 * torch.randn(23, 32, generator=draw)
    for chunk in (5, 1024):
        found = find_twins(base, chat, range(23, 46), torch.arange(46) < 23, chunk=chunk)
        pairs = dict(zip(found.chat.tolist(), found.base.tolist(), strict=True))
        assert pairs == {i: i + 23 for i in range(23)}
    assert float(found.cosine.min()) > 0.99
    assert found.cosine.tolist() == sorted(found.cosine.tolist(), reverse=True)
    # Two latents that want the same partner: the nearer one has it.
    chat[1] = chat[0] + 0.2 * torch.randn(32, generator=draw)
    contested = find_twins(base, chat, [23], [0, 1])
    assert (contested.chat.tolist(), contested.base.tolist()) == ([0], [23])
    chance = false_twins(found, range(23), seed=1)
    assert torch.equal(chance.base, found.base)
    assert not bool((chance.chat == found.chat).any())
    with pytest.raises(InputError, match="one width"):
        find_twins(base, torch.ones(46, 8), [0], [1])


def test_divergence_is_that_of_counting() -> None:
    draw = torch.Generator().manual_seed(2)
    f = torch.relu(torch.randn(3000, 5, generator=draw, dtype=torch.float64))
    f[:, 1] = f[:, 0] * 0.5  # always together
    f[:, 3] = f[:, 2] * (f[:, 2] < 0)  # silent
    f[:, 4] = torch.where(f[:, 0] > 0, 0.0, f[:, 4])  # never with latent 0
    first, second = torch.tensor([0, 0, 2, 2]), torch.tensor([1, 4, 3, 4])
    maxima = f.amax(dim=0)
    parts = [DivergenceCounts(first, second, maxima) for _ in range(2)]
    parts[0].add(Codes.from_dense(f[:1000]), "base")
    parts[1].add(Codes.from_dense(f[1000:]), "chat")
    counts = parts[0] + parts[1]
    for i, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        for normalisation in ("pair", "own"):
            both = torch.stack([maxima[a], maxima[b]])
            limit = both.max().expand(2) if normalisation == "pair" else both.clamp_min(1e-300)
            x, y = f[:, a] / limit[0], f[:, b] / limit[1]
            apart = ((x > 0.4) & (y <= 0.1)) | ((y > 0.4) & (x <= 0.1))
            wanted = float(apart.sum() / ((x > 0.4) | (y > 0.4)).sum())
            assert float(counts.divergence(normalisation=normalisation)[i]) == pytest.approx(wanted)
    own = counts.divergence(normalisation="own")
    assert float(own[0]) == 0.0
    assert float(own[1]) == float(own[2]) == 1.0
    assert int(counts.histogram("base").sum()) == 4 * 1000
    # Other units of the codes change nothing as long as the maxima have them too.
    scaled = DivergenceCounts(first, second, maxima * 3, torch.full((5,), 3.0))
    scaled.add(Codes.from_dense(f), "all")
    assert torch.equal(scaled.histogram(), counts.histogram())


def test_rankings() -> None:
    error = ratio([0.0, 0.05, 0.15, 0.25, 5.0, 0.05, float("nan")])
    held = ratio([0.35, 0.05, 0.15, 0.0, 0.1, 0.2, 0.1])
    candidates = torch.ones(7, dtype=torch.bool)
    candidates[5] = False
    # Ranks among 0..3 are 1, 2, 3, 4 and 4, 2, 3, 1; 4 is no sensible value and 6 none at all.
    assert by_rank_sum(error, held, candidates).tolist() == [1, 0, 3, 2]
    parts = halves(torch.tensor([7, 8, 9, 10, 11]))
    assert (parts.best.tolist(), parts.worst.tolist()) == ([7, 8], [10, 11])
    assert by_size(ratio([-0.5, 0.1, 0.3])).tolist() == [1, 2, 0]
    drawn = curve(error, held, torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.1, 1.0]), among=6, points=11)
    assert drawn.counts.tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4]
    shared = torch.arange(100) < 60
    baseline = shared_baseline(shared, 20)
    assert len(set(baseline.tolist())) == 20
    assert int(baseline.max()) < 60
    nu = ratio([1.0 + 0.001 * i for i in range(60)] + [0.0] * 20 + [1.03] * 20)
    assert inside_baseline(nu, torch.arange(60, 100), torch.arange(60)) == pytest.approx(0.5)
    assert math.isnan(inside_baseline(nu, torch.arange(0), baseline))


def test_the_table_of_a_dictionary_that_knows_the_features() -> None:
    few = {"shared": 6, "base_only": 2, "chat_only": 2, "weak_in_base": 0, "weak_in_chat": 0}
    features = PairedFeatures(**few, overlaps=(), noise=0.002)
    dictionary, source = planted(features), synthetic_source(features, tokens=20_000)
    scaling = latent_scaling(dictionary, source.batches())
    seen: list[Codes] = []
    again = measure_latents(dictionary, source, also=lambda _, codes: seen.append(codes))
    statistics = again.statistics
    assert torch.equal(again.scaling.beta("error").value.nan_to_num(), scaling.beta("error").value.nan_to_num())
    assert torch.equal(Codes.joined(seen).by_latent()[1].diff(), statistics.active())
    assert min(statistics.variance_explained()) > 0.98
    table = latent_table(dictionary, scaling, statistics)
    assert {len(column) for column in table.values()} == {10}
    wanted = {"shared": "shared", "base_only": "base_only", "chat_only": "chat_only"}
    assert table["class"] == [wanted[g] for g in features.groups]
    assert table["flags"] == ["genuine" if g != "shared" else "" for g in features.groups]
    for i, group in enumerate(features.groups):
        assert table["density_synthetic"][i] == pytest.approx(0.03, abs=0.006)
        if group == "chat_only":
            assert abs(table["nu_error"][i]) < 0.05
            assert table["beta_chat_error"][i] == pytest.approx(1, abs=0.02)
        if group == "base_only":
            assert abs(table["nu_error_of_base"][i]) < 0.05
            assert math.isnan(table["decoder_cosine"][i])
        if group == "shared":
            # Without a penalty nu of the error is the decoders' ratio times their cosine (here 1 and 0.9).
            assert table["nu_error"][i] == pytest.approx(1.0 if i % 2 == 0 else 0.9, abs=0.05)
        for name in ("nu_error", "nu_reconstruction"):
            value, low, high = (table[f"{name}{end}"][i] for end in ("", "_low", "_high"))
            assert math.isnan(low) == math.isnan(high) == math.isnan(value), "an interval where there is a value"
            assert math.isnan(value) == (group == "base_only"), "the chat model has no direction to ask along"
            assert math.isnan(value) or low <= value <= high < low + 0.1
    assert all(isinstance(word, str) for name in TEXT_COLUMNS for word in table[name])
    with pytest.raises(InputError, match="measure this dictionary"):
        latent_table(dictionary, scaling, LatentStatistics(torch.ones(2, 3)))


def test_the_table_of_swapped_models_is_mirrored_and_that_of_equal_ones_is_empty() -> None:
    features = PairedFeatures(overlaps=(), weak_levels=(0.5,), noise=0.002)
    tables = []
    for one in (features, features.swapped()):
        dictionary, source = planted(one), synthetic_source(one, tokens=20_000)
        found = measure_latents(dictionary, source)
        tables.append(latent_table(dictionary, found.scaling, found.statistics))
    before, after = tables
    mirror = {"base_only": "chat_only", "chat_only": "base_only"}
    assert [mirror.get(name, name) for name in before["class"]] == after["class"]
    assert before["flags"] == after["flags"]
    assert set(before["flags"]) == {"genuine", ""}
    for name, other in (("nu_error", "nu_error_of_base"), ("nu_reconstruction", "nu_reconstruction_of_base")):
        torch.testing.assert_close(
            torch.tensor(before[name]), torch.tensor(after[other]), rtol=1e-3, atol=1e-3, equal_nan=True
        )
    norms = torch.tensor([before["relative_decoder_norm"], after["relative_decoder_norm"]])
    torch.testing.assert_close(norms[0], 1 - norms[1])
    # The same model twice, with noise of its own in each: nothing is new in either.
    null = features.null(independent_noise=True)
    dictionary = planted(null)
    scaling = latent_scaling(dictionary, synthetic_source(null, tokens=20_000).batches())
    norms = relative_norm(dictionary.decoder_norms())
    assert float((norms - 0.5).abs().max()) < 1e-6
    for target in scaling.targets():
        assert float((scaling.ratio(target).value - 1).abs().max()) < 0.01
