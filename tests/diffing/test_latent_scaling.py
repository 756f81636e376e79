"""Latent Scaling against least squares written out, against planted truths, merged, resumed and swapped."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import torch
from planted_dictionary import planted
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.diffing import latent_scaling
from saeworks.diffing.pairs import PairedBatch, synthetic_source
from saeworks.diffing.probes import Probe, control_probe, source_probes
from saeworks.diffing.scaling import LatentScaling
from saeworks.diffing.scaling_estimates import ESTIMATORS, TARGETS, Estimator, Target
from saeworks.errors import InputError
from saeworks.runtime import generator
from saeworks.world.synthetic.paired import PairedFeatures

D, LATENTS, TOKENS = 6, 5, 900


class Pair:
    """Random codes, decoders, biases and activations of two models, float64, with means far from 0."""

    def __init__(self, seed: int = 0, tokens: int = TOKENS) -> None:
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        self.codes = normal(tokens, LATENTS).clamp_min(0) * (torch.rand(tokens, LATENTS, generator=draw) < 0.4)
        self.decoders = [normal(LATENTS, D), normal(LATENTS, D)]
        self.biases = [normal(D) * 3, normal(D) * 3]
        self.reconstructions = [self.codes @ w + b for w, b in zip(self.decoders, self.biases, strict=True)]
        # Errors that hold some of each latent's direction, so that no beta is trivial.
        self.errors = [0.3 * self.codes @ normal(LATENTS, D) + 0.1 * normal(tokens, D) + 0.5 for _ in range(2)]

    def measured(self, rows: slice = slice(None), **options: Any) -> LatentScaling:
        options = {"block_tokens": 50, "precision": torch.float64} | options
        scaling = LatentScaling(source_probes(self.decoders), self.decoders, self.biases, **options)
        self.feed(scaling, rows)
        return scaling

    def feed(self, scaling: LatentScaling, rows: slice, batch: int = 50) -> None:
        for start in range(*rows.indices(len(self.codes)))[::batch]:
            part = slice(start, min(start + batch, rows.indices(len(self.codes))[1]))
            scaling.add(self.codes[part], [e[part] for e in self.errors], [r[part] for r in self.reconstructions])


def least_squares(pair: Pair, target: Target, estimator: Estimator, probe: int, source: int, latent: int) -> float:
    """The definition: regress the target on ``f u``, with a free intercept vector when centred."""
    f, u = pair.codes[:, latent], pair.decoders[probe][latent]
    x_hat, bias = pair.reconstructions[source], pair.biases[source]
    y = {
        "error": pair.errors[source] + f[:, None] * pair.decoders[source][latent],
        "reconstruction": x_hat - (bias if estimator == "no_bias" else 0),
        "activation": pair.errors[source] + x_hat - (bias if estimator == "no_bias" else 0),
    }[target]
    columns = [(f[:, None] * u).flatten()]
    if estimator == "centered":
        columns += [torch.eye(D, dtype=torch.float64)[i].repeat(len(f)) for i in range(D)]
    return float(torch.linalg.lstsq(torch.stack(columns, dim=1), y.flatten()[:, None]).solution[0])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("target", TARGETS)
def test_streaming_equals_least_squares(target: Target, estimator: Estimator) -> None:
    pair = Pair()
    found = {p: pair.measured(precision=p).beta(target, estimator).value for p in (torch.float64, torch.float32)}
    for probe in range(2):
        for source in range(2):
            for latent in range(LATENTS):
                wanted = least_squares(pair, target, estimator, probe, source, latent)
                at = (probe, source, latent)
                assert float(found[torch.float64][at]) == pytest.approx(wanted, rel=1e-8, abs=1e-8)
                assert float(found[torch.float32][at]) == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_float32_products_survive_a_large_mean() -> None:
    pair = Pair()
    for parts in (pair.reconstructions, pair.biases):
        for part in parts:
            part += 1000.0
    exact, single = (pair.measured(precision=p) for p in (torch.float64, torch.float32))
    # The values are rounded to float32 themselves: 1000 has an error of 3e-5, the codes are of the order of 1.
    torch.testing.assert_close(
        single.beta("reconstruction").value, exact.beta("reconstruction").value, rtol=1e-3, atol=1e-3
    )


def test_planted_shrinkage_and_decoupling_are_read_off() -> None:
    """Chat-only latents of features that the base holds weakly (in its error) or on fewer tokens (in its twin)."""
    features = PairedFeatures(noise=0.0, shared=0, base_only=0, chat_only=3, weak_in_chat=0)
    drawn = features.sample(40_000, torch.Generator().manual_seed(1))
    codes, chat = drawn.codes[:, 1], features.directions[1]
    weak = torch.tensor([g == "weak_in_base" for g in features.groups])
    x_chat = codes @ chat + features.means[1]
    # The base's dictionary knows decoupled features by another latent, and nothing of the weak ones.
    x_base = (drawn.codes[:, 0] * ~weak) @ features.directions[0] + features.means[0]
    decoders = [torch.zeros_like(chat), chat]
    scaling = LatentScaling(source_probes(decoders), decoders)
    h = drawn.activations
    scaling.add(codes, [h[:, 0] - x_base, h[:, 1] - x_chat], [x_base, x_chat])
    error, held = scaling.ratio("error"), scaling.ratio("reconstruction")
    assert bool(error.defined.all())
    assert bool(held.defined.all())
    # Directions are not orthogonal, so other features add noise of some hundredths to what is projected.
    assert float((error.value - features.scales[0])[weak].abs().max()) < 0.05
    decoupled = torch.tensor(features.members("decoupled"))
    assert float((held.value - features.co_activity)[decoupled].abs().max()) < 0.06
    only = torch.tensor(features.members("chat_only"))
    assert float(torch.stack([error.value, held.value])[:, only].abs().max()) < 0.05
    # The plain sums see the models' means and get the reconstruction wrong by far more.
    paper = scaling.ratio("reconstruction", "paper")
    assert float((paper.value - features.co_activity)[decoupled].abs().max()) > 0.1


def test_merged_shards_and_a_resumed_pass_are_the_single_pass() -> None:
    pair = Pair()
    whole = pair.measured()
    merged = pair.measured(slice(0, 400)) + pair.measured(slice(400, 900))
    stopped = pair.measured(slice(0, 350))
    resumed = LatentScaling(source_probes(pair.decoders), pair.decoders, pair.biases, precision=torch.float64)
    resumed.load_state_dict(stopped.state_dict())
    pair.feed(resumed, slice(350, 900))
    assert merged.tokens == whole.tokens == resumed.tokens == TOKENS
    for target in TARGETS:
        one, two, three = (s.beta(target) for s in (whole, merged, resumed))
        torch.testing.assert_close(two.value, one.value, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(two.standard_error, one.standard_error, rtol=1e-8, atol=1e-12)
        assert torch.equal(three.value, one.value)
        assert torch.equal(three.standard_error, one.standard_error)
    with pytest.raises(InputError, match="same dictionary"):
        LatentScaling([Probe("other", (torch.ones(3, D),))]).load_state_dict(stopped.state_dict())


def test_processes_add_up_to_the_single_pass() -> None:
    pair = Pair()
    first, second = pair.measured(slice(0, 300)), pair.measured(slice(300, 900))
    told: list[Tensor] = []

    class Records:
        def add(self, tensor: Tensor) -> Tensor:
            told.append(tensor.clone())
            return tensor

    class Replies:
        """The first process, to which everything is added that the second one said."""

        def add(self, tensor: Tensor) -> Tensor:
            return tensor.add_(told.pop(0))

    second.reduce(Records())
    first.reduce(Replies())
    assert not told
    assert first.tokens == TOKENS
    torch.testing.assert_close(first.beta("error").value, pair.measured().beta("error").value, rtol=1e-10, atol=1e-12)


def test_gauge_and_swap() -> None:
    pair = Pair()
    before = pair.measured()
    factor = torch.rand(LATENTS, dtype=torch.float64) * 5 + 0.1
    pair.codes, pair.decoders = pair.codes * factor, [w / factor[:, None] for w in pair.decoders]
    after = pair.measured()
    for target in TARGETS:
        torch.testing.assert_close(after.beta(target).value, before.beta(target).value, rtol=1e-6, atol=1e-9)
    for parts in (pair.decoders, pair.biases, pair.reconstructions, pair.errors):
        parts.reverse()
    swapped = pair.measured()
    for target in TARGETS:
        torch.testing.assert_close(swapped.beta(target).value, after.beta(target).value.flip(0, 1))
        chat = after.ratio(target)
        mirrored = swapped.ratio(target, probe=0, numerator=1, denominator=0)
        torch.testing.assert_close(mirrored.value, chat.value, equal_nan=True)
        # The same two betas over and under the line are one over the other.
        both = chat.defined & swapped.ratio(target, probe=0).defined
        torch.testing.assert_close(swapped.ratio(target, probe=0).value[both], 1 / chat.value[both])


def test_a_model_against_itself_has_nu_one() -> None:
    pair = Pair()
    for parts in (pair.decoders, pair.biases, pair.reconstructions, pair.errors):
        parts[0] = parts[1]
    scaling = pair.measured()
    for target in TARGETS:
        known = scaling.ratio(target)
        assert int(known.defined.sum()) >= 3
        assert float((known.value[known.defined] - 1).abs().max()) < 1e-12


def test_decoders_at_their_optimum_leave_the_error_nothing_to_say() -> None:
    """Squared error without a penalty: beta of the chat error is 1, and nu of the error follows from the decoders."""
    pair = Pair(seed=4)
    ones = torch.ones(TOKENS, 1, dtype=torch.float64)
    for m in range(2):
        h = pair.errors[m] + pair.reconstructions[m]
        fitted = torch.linalg.lstsq(torch.cat([pair.codes, ones], dim=1), h).solution
        pair.decoders[m], pair.biases[m] = fitted[:-1], fitted[-1]
        pair.reconstructions[m] = pair.codes @ fitted[:-1] + fitted[-1]
        pair.errors[m] = h - pair.reconstructions[m]
    scaling = pair.measured()
    base, chat = pair.decoders
    wanted = (base * chat).sum(dim=1) / chat.square().sum(dim=1)  # cosine times the ratio of the norms
    for estimator in ESTIMATORS:
        beta = scaling.beta("error", estimator).value[1]
        torch.testing.assert_close(beta[1], torch.ones(LATENTS, dtype=torch.float64), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(beta[0], wanted, rtol=1e-8, atol=1e-8)
        # Nothing of a latent is left in the error, so reconstruction and activation agree.
        held, all_of_it = (scaling.beta(t, estimator).value for t in ("reconstruction", "activation"))
        torch.testing.assert_close(held[1, 1], all_of_it[1, 1], rtol=1e-8, atol=1e-8)
    assert bool((scaling.detection_ceiling() < 1e-8).all())


def test_memory_does_not_grow_with_the_tokens() -> None:
    draw = torch.Generator().manual_seed(0)
    decoders = [torch.randn(64, 16, generator=draw) for _ in range(2)]
    scaling = LatentScaling(source_probes(decoders), decoders, blocks=8, block_tokens=64)

    def held() -> int:
        return sum(t.numel() for t in scaling.state_dict()["sums"]["sums"].values())

    sizes: list[int] = []
    tracemalloc.start()
    for step in range(200):
        codes = torch.relu(torch.randn(64, 64, generator=draw) - 1.5)
        rows = [torch.randn(64, 16, generator=draw) for _ in range(2)]
        scaling.add(codes, rows, rows)
        if step in (60, 199):
            sizes += [held(), tracemalloc.get_traced_memory()[0]]
    tracemalloc.stop()
    per_block = 1 + 3 * 64 + 2 * 2 * 2 * 64 + 2 * 32
    assert scaling.tokens == 200 * 64
    assert len(scaling.sums) <= 8
    assert max(sizes[0], sizes[2]) <= 8 * per_block
    assert sizes[3] < sizes[1] + 20_000  # bytes of Python objects; a value kept per batch would show


def test_what_cannot_be_known_is_flagged_and_not_a_number() -> None:
    draw = torch.Generator().manual_seed(3)
    codes = torch.rand(2000, 4, generator=draw, dtype=torch.float64)
    codes[:, 0] = 0.0  # never active
    codes[:, 1] *= torch.arange(2000) % 40 == 0  # 50 tokens
    u = torch.eye(4, dtype=torch.float64)
    base = codes @ u * 0.5
    chat = codes @ (u * torch.tensor([1.0, 1.0, -1.0, 1.0])[:, None].double())
    scaling = LatentScaling([Probe("chat", (u, u))], block_tokens=100, precision=torch.float64)
    scaling.add(codes, activations=[base, chat])
    ratio = scaling.ratio()
    assert ratio.silent.tolist() == [True, False, False, False]
    assert ratio.rare.tolist() == [False, True, False, False]
    assert ratio.denominator.tolist() == [False, False, True, False]  # the chat model holds minus the direction
    assert ratio.value.isnan().tolist() == [True, False, True, False]
    assert float(ratio.value[3]) == pytest.approx(0.5)
    assert ratio.defined.tolist() == [False, False, False, True]
    # Noise around a denominator of 0: undefined too, although its sign is right about half of the time.
    noise = torch.randn(2000, 4, generator=draw, dtype=torch.float64)
    noisy = LatentScaling([Probe("chat", (u, u))], block_tokens=100, precision=torch.float64)
    noisy.add(codes, activations=[base, noise])
    assert bool(noisy.ratio().denominator[2:].all())


def test_jackknife_and_bootstrap_cover_the_truth_at_their_rate() -> None:
    """Many data sets of one latent: the spread of nu over them is what one of them says about its own."""
    values, errors, covered = [], [], 0
    draw = torch.Generator().manual_seed(5)
    u = torch.eye(2, dtype=torch.float64)
    for _ in range(40):
        f = torch.rand(800, 2, generator=draw, dtype=torch.float64)
        base, chat = (f * a + 0.5 * torch.randn(800, 2, generator=draw, dtype=torch.float64) for a in (0.3, 1.0))
        scaling = LatentScaling([Probe("chat", (u, u))], block_tokens=50, precision=torch.float64)
        scaling.add(f, activations=[base, chat])
        ratio = scaling.ratio()
        low, high = scaling.ratio_interval(resamples=200)
        values.append(ratio.value)
        errors.append(ratio.standard_error)
        covered += int(((low < 0.3) & (high > 0.3)).sum())
    spread = float(torch.cat(values).std())
    assert float(torch.cat(errors).mean()) == pytest.approx(spread, rel=0.2)
    assert 0.82 < covered / 80 <= 1.0


def test_on_a_synthetic_pair_the_bootstrap_is_as_wide_as_the_jackknife_says() -> None:
    """Two ways to the same error: a 95 % interval spans 2 · 1.96 standard errors."""
    features = PairedFeatures(overlaps=(), weak_levels=(0.3, 0.6), noise=0.02)
    scaling = latent_scaling(planted(features), synthetic_source(features, tokens=30_000).batches())
    assert len(scaling.sums) >= 16
    for target in ("error", "reconstruction"):
        ratio = scaling.ratio(target)
        low, high = scaling.ratio_interval(target)
        known = ratio.defined & (ratio.standard_error > 1e-6)
        assert int(known.sum()) > 20
        assert bool(((low <= ratio.value) & (ratio.value <= high))[known].all())
        relative = ((high - low) / (2 * 1.96 * ratio.standard_error))[known]
        assert 0.9 < float(relative.median()) < 1.1
        assert float(relative.min()) > 0.6
        assert float(relative.max()) < 1.5


def test_intervals_are_percentiles_of_drawn_blocks() -> None:
    pair = Pair()
    scaling = pair.measured()
    stacked = scaling.sums.stacked()
    blocks = len(stacked["tokens"])
    drawn = torch.randint(blocks, (40, blocks), generator=generator(7, "blocks"))
    rows = [torch.cat([torch.arange(50 * int(b), 50 * int(b) + 50) for b in one]) for one in drawn]
    values = []
    for one in rows:
        again = Pair()
        again.codes = pair.codes[one]
        again.errors, again.reconstructions = ([e[one] for e in part] for part in (pair.errors, pair.reconstructions))
        betas = [[least_squares(again, "error", "centered", 1, m, j) for j in range(LATENTS)] for m in range(2)]
        values.append(torch.tensor(betas[0]) / torch.tensor(betas[1]))
    edges = torch.tensor([0.025, 0.975])
    expected = torch.stack(values).quantile(edges, dim=0).double()
    found = scaling.ratio_interval("error", resamples=40, seed=7)
    assert torch.allclose(torch.stack(found), expected, rtol=1e-4)
    # Kept until there are more tokens.
    assert scaling.ratio_interval("error", resamples=40, seed=7)[0] is found[0]
    pair.feed(scaling, slice(0, 100))
    assert not torch.equal(scaling.ratio_interval("error", resamples=40, seed=7)[0], found[0])


def test_a_latent_of_one_block_and_a_measurement_of_one_have_no_interval() -> None:
    draw = torch.Generator().manual_seed(4)
    codes = torch.rand(2000, 2, generator=draw, dtype=torch.float64)
    codes[200:, 1] = 0.0  # 200 tokens, all in the first of four blocks
    u = torch.eye(2, dtype=torch.float64)
    base, chat = codes @ u * 0.5 + 0.01, codes @ u + 0.01 * torch.randn(2000, 2, generator=draw, dtype=torch.float64)
    for tokens, expected in ((500, [False, True]), (2000, [True, True])):
        scaling = LatentScaling([Probe("chat", (u, u))], block_tokens=tokens, precision=torch.float64)
        scaling.add(codes, activations=[base, chat])
        for end in scaling.ratio_interval(resamples=50):
            assert end.isnan().tolist() == expected


def test_the_ceiling_of_a_shrunk_latent() -> None:
    """One concept, base strength a below the shrinkage threshold: nu of the error is a, the ceiling the threshold."""
    draw = torch.Generator().manual_seed(2)
    s = (1 + torch.rand(20_000, 1, generator=draw)) * (torch.rand(20_000, 1, generator=draw) < 0.1)
    u, penalty, a = torch.tensor([[0.6, 0.8]]), 1.2, 0.3
    shrunk = penalty / 2 * float(s.mean() / s.square().mean())  # the chat decoder loses this much, the base all of a
    decoders = [torch.zeros(1, 2), (1 - shrunk) * u]
    scaling = LatentScaling(source_probes(decoders), decoders)
    scaling.add(s, [s * a * u, s * shrunk * u], [s * 0 * u, s * (1 - shrunk) * u])
    # In the isolated model the optimum has t = a* / (1 − a*), so that t / (1 + t) is a*.
    for given in (penalty, None):
        assert float(scaling.detection_ceiling("paper", given)) == pytest.approx(shrunk, abs=1e-4)
    assert float(scaling.ratio("error", "paper").value) == pytest.approx(a, abs=1e-5)
    assert float(scaling.saturation("paper")) == pytest.approx(a / shrunk, abs=1e-3)


def difference_dictionary(d: int = 8, latents: int = 12) -> Dictionary:
    draw = torch.Generator().manual_seed(7)
    rows = torch.nn.functional.normalize(torch.randn(latents, d, generator=draw), dim=1)
    cfg = DictionaryConfig(architecture="relu", d_in=d, d_sae=latents)
    return Dictionary(cfg, rows.T.contiguous(), rows, torch.full((latents,), -0.5), torch.zeros(d))


@pytest.mark.parametrize("estimator", ["centered", "paper"])
def test_a_dictionary_of_the_difference_has_betas_that_differ_by_its_own(estimator: Estimator) -> None:
    features = PairedFeatures(d=8)
    source, dictionary = synthetic_source(features, tokens=20_000), difference_dictionary()
    scaling = latent_scaling(dictionary, source.batches(), reads="difference")
    itself = LatentScaling([Probe("difference", (dictionary.W_dec,))])
    for batch in source.batches():
        z = batch.x[1] - batch.x[0]
        itself.add(dictionary.encode_sparse(z), activations=[z])
    beta = scaling.beta(estimator=estimator).value[0]
    torch.testing.assert_close(
        beta[1] - beta[0], itself.beta(estimator=estimator).value[0, 0], rtol=1e-4, atol=1e-4, equal_nan=True
    )
    with pytest.raises(InputError, match="reads=0"):
        latent_scaling(dictionary, source.batches())
    with pytest.raises(InputError, match="needs a crosscoder"):
        scaling.beta("error")


def test_three_sources_give_the_whole_table() -> None:
    """A concept that grows over checkpoints, held by one latent: beta is its strength over the probe's."""
    draw = torch.Generator().manual_seed(1)
    strengths, u = (
        torch.tensor([0.2, 0.5, 1.0]),
        torch.nn.functional.normalize(torch.randn(1, 5, generator=draw), dim=1),
    )
    f = torch.rand(3000, 1, generator=draw) + 0.5
    decoders = [a * u for a in strengths]
    scaling = LatentScaling(source_probes(decoders, ("a", "b", "c")), decoders, block_tokens=300)
    rows = [f @ w + 1.0 for w in decoders]
    scaling.add(f, [0 * r for r in rows], rows)
    wanted = (strengths[None] / strengths[:, None]).double()
    for target in TARGETS:
        torch.testing.assert_close(scaling.beta(target).value[:, :, 0], wanted, rtol=1e-5, atol=1e-5)
    assert float(scaling.ratio("error", numerator=0, denominator=2).value) == pytest.approx(0.2, rel=1e-5)


def test_controls_widths_and_a_floor() -> None:
    draw = torch.Generator().manual_seed(0)
    decoder = torch.randn(9, 7, generator=draw)
    for kind in ("random", "permuted"):
        control = control_probe(decoder, kind)
        assert control.directions[0] is not None
        torch.testing.assert_close(control.directions[0].norm(dim=1), decoder.norm(dim=1))
        assert not torch.equal(control.directions[0], decoder)
    # Models of different widths: each decoder is a probe in its own model only.
    wide = torch.randn(9, 4, generator=draw)
    scaling = LatentScaling(source_probes([decoder, wide]), [decoder, wide], floor=torch.full((9,), 0.5))
    codes = torch.rand(500, 9, generator=draw)
    rows = [codes @ decoder, codes @ wide]
    scaling.add(Codes.from_dense(codes), [0 * r for r in rows], rows)
    beta = scaling.beta("reconstruction").value
    assert bool(beta[0, 0].isfinite().all())
    assert bool(beta[1, 1].isfinite().all())
    assert bool(beta[0, 1].isnan().all())
    assert bool(beta[1, 0].isnan().all())
    assert torch.equal(scaling.counts, (codes >= 0.5).sum(dim=0))


def test_bad_rows_are_sentences() -> None:
    u = torch.eye(3)
    scaling = LatentScaling([Probe("chat", (u, u))])
    codes = torch.ones(4, 3)
    with pytest.raises(InputError, match="activation rows of every source"):
        scaling.add(codes, activations=[torch.ones(4, 3)])
    with pytest.raises(InputError, match="not finite"):
        scaling.add(codes, activations=[torch.ones(4, 3), torch.full((4, 3), torch.nan)])
    with pytest.raises(InputError, match="no batch was added"):
        scaling.beta()
    scaling.add(codes, activations=[torch.ones(4, 3), torch.ones(4, 3)])
    with pytest.raises(InputError, match="Did you mean"):
        scaling.beta(estimator="centred")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one batch"):
        latent_scaling(difference_dictionary(), iter(list[PairedBatch]()), reads=0)


def test_the_function_of_the_room_takes_sources_batches_streams_and_tensors() -> None:
    import saeworks.diffing
    import saeworks.diffing.latent_pass  # importing its module leaves the name a function
    from saeworks.diffing import latent_scaling as measured
    from saeworks.diffing.paired_stream import synthetic_stream

    assert saeworks.diffing.latent_scaling is measured is latent_scaling
    with pytest.raises(AttributeError):
        _ = saeworks.diffing.latent_scalin  # pyright: ignore[reportAttributeAccessIssue]
    features = PairedFeatures(d=8)
    dictionary, source = difference_dictionary(), synthetic_source(features, tokens=6000)
    found = measured(dictionary, source, reads="difference", block_tokens=500)
    x = [torch.cat(parts) for parts in zip(*(batch.x for batch in source.batches()), strict=True)]
    ways: list[Any] = [source.batches(), x, tuple(x), torch.stack(x, dim=1)]
    for way in ways:
        same = measured(dictionary, way, reads="difference", block_tokens=500)
        assert same.tokens == 6000
        torch.testing.assert_close(same.beta().value, found.beta().value, equal_nan=True, rtol=1e-4, atol=1e-5)
    stream = synthetic_stream(features, seed=5)
    assert measured(dictionary, stream, "difference", 2500).tokens == 2500
    assert measured(dictionary, source, "difference", 700).tokens == 700
    with pytest.raises(InputError, match="never ends"):
        measured(dictionary, stream, "difference")
    with pytest.raises(InputError, match="One \\[token, width\\] tensor per model"):
        measured(dictionary, x[0], "difference")
    with pytest.raises(InputError, match="One \\[token, width\\] tensor per model"):
        measured(dictionary, [x[0], x[1][:-1]], "difference")


def test_importing_the_room_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, saeworks.diffing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_centred_ceiling_divides_by_the_variance_of_the_codes() -> None:
    """A latent that fires on half of the tokens, errors at their optimum: E[e] = 0 and E[f e] = λ/2 E[f] d / |d|."""
    draw = torch.Generator().manual_seed(2)
    n, penalty = 20_000, 1.2
    s = (1 + torch.rand(n, 1, generator=draw)).double() * (torch.rand(n, 1, generator=draw) < 0.5)
    u = torch.tensor([[0.6, 0.8]]).double()
    centred = s - s.mean()
    error = centred * (penalty / 2 * s.mean() / (s * centred).mean()) * u
    decoders = [torch.zeros(1, 2).double(), u]
    scaling = LatentScaling(source_probes(decoders), decoders, precision=torch.float64)
    scaling.add(s, [0 * error, error], [0 * s * u, s * u])
    read_off = float(scaling.detection_ceiling("centered"))
    assert float(scaling.detection_ceiling("centered", penalty)) == pytest.approx(read_off, rel=1e-6)
    assert float(scaling.detection_ceiling("paper", penalty)) < 0.7 * read_off


def test_there_is_no_ceiling_without_a_positive_beta_and_no_saturation_of_rare_latents() -> None:
    f = torch.zeros(1000, 2).double()
    f[::2, 0], f[:50, 1] = 1.0, 1.0
    f *= torch.linspace(1, 2, 1000).double()[:, None]
    u = torch.eye(2).double()
    decoders = [torch.zeros(2, 2).double(), u]
    scaling = LatentScaling(source_probes(decoders), decoders, precision=torch.float64)
    # The chat error of the first latent takes more away than its decoder puts there; that of the second adds to it.
    chat = f * torch.tensor([-1.5, 0.5])
    scaling.add(f, [0.2 * f, chat], [0 * f, f])
    ceiling, saturation = scaling.detection_ceiling("paper"), scaling.saturation("paper")
    assert bool(ceiling[0].isnan())
    assert float(ceiling[1]) == pytest.approx(1 / 3, abs=1e-6)
    assert not bool(scaling.ratio("error", "paper").defined[1])
    assert bool(saturation.isnan().all())
