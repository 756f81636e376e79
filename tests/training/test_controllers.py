"""What changes over a run: exponents, adapted weights, falling k, resampled and reordered latents, averages."""

import json
from dataclasses import replace

import pytest
import torch
from recipe_cases import CPU, cell, data, layout, member, rows

from saeworks.activations.batches import Layout
from saeworks.errors import InputError
from saeworks.runtime import generator
from saeworks.training.cells import sampled_sizes
from saeworks.training.controllers import L0Control, PenaltyState
from saeworks.training.initialisation import Initialisation, draw_weights
from saeworks.training.member import Member
from saeworks.training.objectives import variance
from saeworks.training.penalties import Lp
from saeworks.training.recipes import Jump, recipe
from saeworks.training.resampling import Resampling, resample
from saeworks.training.schedules import KAnneal, Schedule, Span, Timing


def test_the_penalty_stays_continuous_when_its_exponent_falls():
    chosen = recipe("p_anneal", penalties=(Lp(begin=0.25, finish=1.0, updates=6),))
    m, schedule = member(chosen), chosen.schedule(240)
    weights, exponents, size = [], [], []
    for step in range(240):
        x = data(seed=step)
        moment = m.moment(schedule, step)
        weights.append(moment.penalty)
        exponents.append(moment.p)
        size.append(moment.penalty * float(m.losses(x, moment=moment)[0]["lp"].detach()))
        m.step(x, schedule, step)
    falls = [i for i in range(1, 240) if exponents[i] != exponents[i - 1]]
    assert falls == [60, 90, 120, 150, 180, 210]
    assert exponents[0] == 1.0
    assert exponents[-1] == pytest.approx(0.2)
    for i in falls:
        assert weights[i] != weights[i - 1]
        # The ratio is of means over ten batches, each of which differs from the next by a few percent.
        assert sum(size[i : i + 5]) == pytest.approx(sum(size[i - 5 : i]), rel=0.05)
    steady = weights[61:90]
    assert max(steady) == min(steady)


def test_p_annealing_in_a_run_too_short_for_all_its_steps_keeps_numbers_finite():
    m = member("p_anneal")
    for step in range(4):
        m.step(data(), m.config.recipe.schedule(4), step)
    assert m.is_finite()
    assert 0 < m.penalty.scale < float("inf")


@pytest.mark.parametrize(
    "chosen",
    [
        recipe("jumprelu", jump=Jump(bandwidth=0.05, threshold=0.05)),
        recipe("jumprelu", jump=Jump(bandwidth=0.3, threshold=0.3, relative=True)),
        recipe("relu", sparsity="l0", control=L0Control(initial=0.02), resampling=None),
    ],
    ids=["jumprelu", "relative window", "adapted L1"],
)
def test_the_l0_aimed_at_is_reached(chosen):
    m, schedule = member(chosen, width=48, k=3, rate=1e-2), chosen.schedule(500)
    for step in range(500):
        stats = m.step(data(tokens=256, seed=step), schedule, step)
    held_out = [float(m.select(data(tokens=256, seed=s)).counts().float().mean()) for s in range(1000, 1008)]
    assert sum(held_out) / 8 == pytest.approx(3, rel=0.1)
    assert float(stats["full"]) < 0.6
    assert 0 < m.report().get("details/penalty", 1.0) < 10


def test_a_jumprelu_reports_the_health_of_its_thresholds():
    m = member("jumprelu")
    with torch.no_grad():
        m.parameters["threshold"][:16] = 0.0
        m.parameters["threshold"][16:] = 0.5
    report = m.report()
    assert report["details/threshold_at_zero"] == 0.25
    assert (report["details/threshold_min"], report["details/threshold_max"]) == (0.0, 0.5)
    stats = m.step(data(), Schedule.for_run(10), 0)
    assert 0 < float(stats["in_window"]) < 0.1


def test_a_threshold_never_falls_below_zero():
    m = member("jumprelu", rate=0.5)
    for step in range(5):
        m.step(data(), Schedule.for_run(1000, Timing(warm_up=Span(0, 0.0))), step)
        assert float(m.parameters["threshold"].detach().min()) >= 0


def test_a_threshold_may_learn_at_a_rate_of_its_own():
    timing = Timing(warm_up=Span(0, 0.0), sparsity_warm_up=Span(0, 0.0))
    moved = {}
    for rate in (1.0, 10.0):
        m = member("jumprelu", jump=Jump(bandwidth=0.2, threshold=0.2, rate=rate), rate=1e-3)
        m.step(data(), Schedule.for_run(100, timing), 0)
        moved[rate] = {
            n: float((p - q).detach().abs().max()) for (n, p), q in zip(m.parameters.items(), start(m), strict=True)
        }
    assert moved[10.0]["threshold"] == pytest.approx(10 * moved[1.0]["threshold"], rel=1e-3)
    assert moved[10.0]["encoder"] == pytest.approx(moved[1.0]["encoder"], rel=1e-3)


def start(m):
    """The parameters as they were before the first step."""
    fresh = Member(m.config, m.layout, m.dead_after, CPU)
    fresh.initialise(*rows(m.config.recipe))
    return list(fresh.parameters.values())


def test_k_falls_from_the_width_of_the_input():
    anneal = KAnneal(widths=2.0, over=Span(None, 0.5))
    assert [anneal.k(4, 64, 12, step, 20) for step in (0, 5, 9, 10, 19)] == [24, 14, 6, 4, 4]
    assert anneal.k(4, 16, 12, 0, 20) == 16
    m = member("topk", k_anneal=anneal)
    schedule = m.config.recipe.schedule(20)
    l0 = [float(m.step(data(offset=0.0), schedule, step)["l0"]) for step in range(20)]
    assert l0[0] > 3 * l0[-1]
    assert max(l0[10:]) <= 4


def test_resampled_latents_take_the_direction_of_badly_reconstructed_inputs():
    m = member("relu")
    x = data()
    for step in range(2):
        m.step(x, Schedule.for_run(100), step)
    dead = torch.tensor([2, 5, 60])
    errors = torch.zeros(512)
    errors[[7, 100, 300]] = torch.tensor([1.0, 2.0, 3.0])
    alive = torch.ones(64, dtype=torch.bool)
    alive[dead] = False
    before = {n: p.detach().clone() for n, p in m.parameters.items()}
    moments = m._moments()
    assert resample(m.parameters, moments, dead, x - m.b_dec, errors, generator(0)).tolist() == dead.tolist()
    wanted = torch.nn.functional.normalize(x[[7, 100, 300]] - before["b_dec"], dim=1)
    got = m.decoder.detach()[dead]
    assert sorted((got @ wanted.T).argmax(dim=1).tolist()) == [0, 1, 2]
    assert torch.allclose((got @ wanted.T).amax(dim=1), torch.ones(3))
    norm = before["encoder"][alive].norm(dim=1).mean()
    assert torch.allclose(m.encoder.detach()[dead], 0.2 * norm * got)
    assert m.b_enc[dead].abs().max() == 0
    for name in ("encoder", "decoder", "b_enc"):
        assert torch.equal(m.parameters[name][alive], before[name][alive]), name
        for value in (moments[name]["exp_avg"], moments[name]["exp_avg_sq"]):
            assert value[dead].abs().max() == 0
            assert value[alive].abs().max() > 0
    assert resample(m.parameters, moments, dead, x, torch.zeros(512), generator(0)).numel() == 0


def test_tokens_are_drawn_by_the_square_of_their_error():
    counts = torch.zeros(3)
    errors = torch.tensor([1.0, 2.0, 0.0])
    for seed in range(600):
        p = {"encoder": torch.ones(2, 3), "decoder": torch.ones(2, 3), "b_enc": torch.zeros(2)}
        resample(p, {}, torch.tensor([0]), torch.eye(3), errors, generator(seed))
        counts += p["decoder"][0]
    assert counts[2] == 0
    assert float(counts[1] / counts.sum()) == pytest.approx(0.8, abs=0.05)


def test_resampling_revives_dead_latents_and_warms_the_rate_up_again():
    chosen = recipe("relu", resampling=Resampling(every=Span(None, 0.25), until=0.5))
    without = replace(chosen, resampling=None)
    schedule = chosen.schedule(200)
    assert [step for step in range(200) if chosen.resampling.due(step, 200)] == [50, 100]
    warm = schedule.warm_up
    assert schedule.multiplier(49) == schedule.multiplier(150) == 1.0
    assert schedule.multiplier(50) == schedule.multiplier(0) == pytest.approx(1 / warm)
    alive = {}
    for candidate in (chosen, without):
        m = member(candidate, rate=1e-2)
        with torch.no_grad():
            m.b_enc[20:40] = -100.0
        for step in range(200):
            m.step(data(seed=step), schedule, step)
        alive[candidate.resampling is not None] = int((m.tokens_since_fired[20:40] < 20 * 512).sum())
    assert alive[False] == 0
    assert alive[True] >= 15


def test_no_more_than_a_share_of_the_latents_is_replaced_at_once():
    m = member("relu", resampling=Resampling(every=Span(None, 0.5), until=1.0, largest=0.1))
    with torch.no_grad():
        m.b_enc.fill_(-100.0)
    m.tokens_since_fired.fill_(10**6)
    m._resample(*m._prepared(data(), None), 10, 10)
    assert int((m.tokens_since_fired == 0).sum()) == 6


def test_reordered_latents_keep_everything_that_is_theirs():
    m = member("matryoshka_relu_sampled", weight_average=0.9)
    plain = member("matryoshka_relu_sampled", reorder=False, weight_average=0.9)
    x, schedule = data(), Schedule.for_run(100)
    m.step(x, schedule, 0)
    plain.step(x, schedule, 0)
    codes = plain.losses(x)[1]
    strength = torch.zeros(64)  # as the first step saw it: from parameters before it, weights after it
    fresh = member("matryoshka_relu_sampled", reorder=False, weight_average=0.9)
    codes = fresh.losses(x)[1]
    written = codes.values.detach() * plain.decoder.detach().norm(dim=1)[codes.indices]
    strength.index_add_(0, codes.indices, written.square())
    order = strength.argsort(descending=True, stable=True)
    assert order.tolist() != list(range(64))
    for name, value in plain.parameters.items():
        expected = value[order] if name != "b_dec" else value
        assert torch.equal(m.parameters[name], expected), name
        assert torch.equal(m.averages[name], plain.averages[name][order] if name != "b_dec" else plain.averages[name])
        for key in ("exp_avg", "exp_avg_sq"):
            moment = plain.optimizer.state[value][key]
            expected = moment[order] if name != "b_dec" else moment
            assert torch.equal(m.optimizer.state[m.parameters[name]][key], expected), (name, key)
    assert torch.equal(m.tokens_since_fired, plain.tokens_since_fired[order])
    assert bool((m.strengths.diff() <= 0).all())


def test_sampled_prefixes_prefer_short_ones_and_always_hold_the_whole():
    lengths = torch.zeros(21)
    for seed in range(4000):
        sizes = sampled_sizes(20, 2, generator(seed))
        assert sum(sizes) == 20
        lengths[sizes[0]] += 1
    shares = lengths[1:6] / 4000
    # √j - √(j - 1) over their sum up to 19.
    assert torch.allclose(shares, torch.tensor([0.229, 0.095, 0.073, 0.061, 0.054]), atol=0.02)
    assert all(len(sampled_sizes(20, 10, generator(s))) == 10 for s in range(20))
    assert min(min(sampled_sizes(20, 10, generator(s))) for s in range(20)) >= 1
    assert sampled_sizes(8, 100, generator(0)) == (1,) * 8
    assert sampled_sizes(8, 1, generator(0)) == (8,)


def test_an_average_of_the_weights_is_exported_in_their_place():
    m = member("topk", weight_average=0.5)
    average = {n: p.detach().clone() for n, p in m.parameters.items()}
    for step in range(5):
        m.step(data(), Schedule.for_run(10), step)
        average = {n: 0.5 * average[n] + 0.5 * p.detach() for n, p in m.parameters.items()}
    exported = m.export(1.0, {})
    assert torch.allclose(exported.encoder, average["encoder"], atol=1e-6)
    assert torch.allclose(exported.W_dec, torch.nn.functional.normalize(average["decoder"], dim=1), atol=1e-6)
    assert not torch.allclose(exported.encoder, m.encoder, atol=1e-4)


def test_schedule_free_sign_descent_follows_its_definition():
    m = member("topk", optimizer="signum", clip_norm=None, constraint="free", aux_k=None, rate=1e-2)
    p = m.b_dec
    x0 = z = p.detach().clone()
    x, schedule = x0, Schedule.for_run(10, Timing(warm_up=Span(0, 0.0), decay=0.0))
    for t in range(1, 4):
        seen = p.detach().clone()
        assert torch.allclose(seen, 0.95 * x + 0.05 * z, atol=1e-6)
        m.optimizer.zero_grad()
        m.losses(data())[0]["total"].backward()
        z = z - 1e-2 * p.grad.sign()
        x = x + (z - x) / t
        m.step(data(), schedule, t - 1)
    assert torch.allclose(m.optimizer.averaged(p), x, atol=1e-6)
    assert torch.allclose(m.export(1.0, {}).b_dec, x, atol=1e-6)


@pytest.mark.parametrize("scale", ["matched", "search"])
def test_the_first_reconstructions_have_a_sensible_size(scale):
    x = 30 * data(tokens=1024)
    unscaled = member("batch_topk", initialised=False, initialisation=Initialisation(scale="none"))
    scaled = member("batch_topk", initialised=False, initialisation=Initialisation(scale=scale))
    errors = []
    for m in (unscaled, scaled):
        m.initialise(x)
        errors.append(float(m.losses(x)[0]["full"]))
    assert errors[1] < errors[0]
    if scale == "matched":
        out = scaled.select(x).dense() @ scaled.decoder
        assert float(out.square().sum() / variance(x)) == pytest.approx(1, rel=0.1)
    else:
        norms = scaled.decoder.norm(dim=1)
        assert torch.allclose(norms, norms[0].expand(64), rtol=1e-5)


def test_biases_begin_where_the_recipe_says():
    x, y = rows(recipe("transcoder"))
    m = member("transcoder")
    assert torch.allclose(m.b_dec, y.mean(dim=0), atol=1e-6)
    assert (x @ m.encoder.T + m.b_enc).mean(dim=0).abs().max() < 1e-5
    assert m.decoder.abs().max() == 0
    frequent = replace(recipe("anthropic-jan25"), grid=(1.0,))
    m = Member(cell(frequent, width=40_000), layout(frequent), 10**9, CPU)
    x = torch.randn(400, 12, generator=generator(0))
    m.initialise(x)
    counts = (x @ m.encoder.T + m.b_enc >= m.parameters["threshold"] - 1e-6).sum(dim=0)
    assert float(counts.float().mean()) == pytest.approx(100, rel=0.02)  # 10,000 / 40,000 of 400 tokens
    zero = member("topk", initialisation=Initialisation(b_dec="zero"))
    assert zero.b_dec.abs().max() == 0
    for width_out in (12, 7):  # of a transcoder the encoder is drawn apart, in the same range
        encoder, decoder = draw_weights(Initialisation(weights="uniform"), Layout(12, d_out=width_out), 4000, 0)
        assert float(encoder.std()) == pytest.approx(12 / 4000 / 36**0.5, rel=0.02)
        assert float(decoder.std()) == pytest.approx((3 * width_out) ** -0.5, rel=0.02)
    toy = member("relu", initialisation=Initialisation(weights="encoder", row_norm=0.1, scale="none"))
    assert torch.allclose(toy.decoder, 0.1 * torch.nn.functional.normalize(toy.encoder, dim=1), atol=1e-6)
    assert float(toy.encoder.std()) == pytest.approx(12**-0.5, rel=0.1)


def test_published_durations_shrink_with_the_run():
    timing = Timing(
        warm_up=Span(1000, 0.1), warm_up_from=0.1, cosine=True, decay=0.0, sparsity_warm_up=Span(5000, 0.25)
    )
    long, short = Schedule.for_run(100_000, timing), Schedule.for_run(200, timing)
    assert (long.warm_up, long.sparsity_warm_up, short.warm_up, short.sparsity_warm_up) == (1000, 5000, 20, 50)
    assert long.multiplier(0) == pytest.approx(0.1, abs=1e-3)
    assert long.multiplier(499) == pytest.approx(0.55)
    assert long.multiplier(999) == long.multiplier(99_999) == 1.0
    assert [short.sparsity(step) for step in (0, 25, 50, 199)] == [0.0, 0.5, 1.0, 1.0]
    decayed = Schedule.for_run(100, Timing(decay=0.2, decay_to=0.1))
    assert decayed.multiplier(80) == 1.0
    assert decayed.multiplier(90) == pytest.approx(0.55)


def test_a_controller_reaches_as_far_in_a_short_run_as_in_a_long_one():
    control = L0Control(reach=3.0)
    assert control.factor(5, 4, 10) ** 10 == pytest.approx(control.factor(5, 4, 1000) ** 1000)
    assert control.factor(5, 4, 10) * control.factor(3, 4, 10) == pytest.approx(1)


def test_the_state_of_controllers_is_restored():
    chosen = recipe("p_anneal", penalties=(Lp(begin=0.1, updates=3),), weight_average=0.9)
    m, schedule = member(chosen), chosen.schedule(30)
    for step in range(15):
        m.step(data(seed=step), schedule, step)
    assert m.penalty.falls == 2
    other = member(chosen)
    other.load_state_dict(m.state_dict())
    for step in range(15, 30):
        for each in (m, other):
            each.step(data(seed=step), schedule, step)
    assert m.penalty == other.penalty
    assert all(torch.equal(p, other.parameters[n]) for n, p in m.parameters.items())
    assert all(torch.equal(a, other.averages[n]) for n, a in m.averages.items())


@pytest.mark.parametrize("size", [float("nan"), float("inf")])
def test_what_is_not_finite_never_gets_into_the_state_that_a_checkpoint_holds(size):
    state = PenaltyState()
    for step in range(10):
        state.follow_exponent(Lp(begin=0.0), 1.0 if step else size, 2.0, step, 10)
    json.dumps(state.state_dict(), allow_nan=False)
    assert 0 < state.scale < 1


def test_an_unknown_preset_is_a_sentence():
    from saeworks.training.catalogue import preset

    with pytest.raises(InputError, match=r"There is no preset 'sae_bench'\. Did you mean 'saebench'"):
        preset("sae_bench")
