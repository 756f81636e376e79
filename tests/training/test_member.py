"""One dictionary in training: constraints, dead latents, thresholds, side effects, exported parameters."""

from dataclasses import replace

import pytest
import torch
from recipe_cases import CPU, cell, data, layout, member, rows
from torch.utils._python_dispatch import TorchDispatchMode

from saeworks.activations.batches import Layout
from saeworks.errors import InputError
from saeworks.training.calibration import calibrate, calibrated_threshold
from saeworks.training.controllers import L0Control
from saeworks.training.initialisation import geometric_median
from saeworks.training.member import Member
from saeworks.training.penalties import L1, Lp
from saeworks.training.recipes import RECIPES, MultiTopK, recipe
from saeworks.training.schedules import KAnneal, Schedule, default_learning_rate

SCHEDULE = Schedule.for_run(400)


@pytest.mark.parametrize("name", RECIPES)
def test_a_hundred_steps_reduce_the_loss_and_keep_the_constraint(name):
    m = member(name)
    x, y = rows(m.config.recipe)
    before = float(m.losses(x, y)[0]["total"].detach())
    for step in range(100):
        m.step(x, SCHEDULE, step, y)
    # Where the weight of the penalty adapts, the loss does not only measure how well it is minimised.
    assert float(m.losses(x, y)[0]["total"].detach()) < (0.9 if m.config.recipe.control else 0.6) * before
    norms = m.decoder.norm(dim=1)
    if m.config.recipe.constraint == "unit":
        assert torch.allclose(norms, torch.ones(64), atol=1e-6)
    else:
        assert norms.max() - norms.min() > 1e-3


@pytest.mark.parametrize("name", RECIPES)
def test_asking_for_the_loss_changes_nothing(name):
    m = member(name, dead_after=256)
    x, y = rows(m.config.recipe)
    for step in range(3):
        m.step(x, SCHEDULE, step, y)

    def snapshot():
        return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in m.state_dict().items()}

    before = snapshot()
    m.losses(x, y)
    m.losses(x, y)
    m.report()
    after = snapshot()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) if isinstance(value, torch.Tensor) else value == after[key], key


def test_dead_latents_are_counted_in_tokens_and_revived_by_aux_k():
    x = data()
    m = member("batch_topk", k=2, dead_after=1024)
    with torch.no_grad():
        m.b_enc[32:] = -100.0  # these can never fire by themselves
    fired = torch.zeros(64, dtype=torch.bool)
    for step in range(2):
        fired |= m.select(x).fired()
        m.step(x, SCHEDULE, step)
    assert torch.equal(m.tokens_since_fired[32:], torch.full((32,), 1024))
    assert set(range(32, 64)) <= set(m.dead().tolist())
    assert m.tokens_since_fired[fired].max() <= 512
    with torch.no_grad():
        m.b_enc[32:] = -0.3
    without = member("batch_topk", k=2, dead_after=1024, aux_k=None)
    without.load_state_dict(m.state_dict())
    for step in range(2, 300):
        m.step(x, SCHEDULE, step)
        without.step(x, SCHEDULE, step)
    assert m.dead().numel() < without.dead().numel()


def test_matryoshka_with_one_group_is_batch_topk():
    x = data()
    plain, nested = member("batch_topk"), member("matryoshka_batch_topk", group_fractions=(1.0,))
    for step in range(5):
        plain.step(x, SCHEDULE, step)
        nested.step(x, SCHEDULE, step)
    for name, value in plain.parameters.items():
        assert torch.equal(value, nested.parameters[name]), name


def test_a_zero_row_does_not_become_nan():
    m, x = member("batch_topk"), data()
    with torch.no_grad():
        m.decoder[0] = 0
    for step in range(5):
        m.step(x, SCHEDULE, step)
    assert all(bool(p.isfinite().all()) for p in m.parameters.values())


def trained_function(m, x, y):
    """Latents and outputs of the member by the selection of inference, in the units it was trained in."""
    recipe, p = m.config.recipe, {n: t.detach() for n, t in m.parameters.items()}
    u = (x - p["b_dec"] if recipe.pre_bias else x) @ p["encoder"].T
    z = u + p["b_enc"]
    norms = p["decoder"].norm(dim=1) if recipe.inputs != "sources" else p["decoder"].view(64, 2, -1).norm(dim=2).sum(1)
    if recipe.selection == "gated":
        f = (torch.exp(p["r_mag"]) * u + p["b_enc"]).relu() * (u + p["b_gate"] > 0)
    elif recipe.selection == "jumprelu":
        f = z.relu() * (z > p["threshold"])
    elif recipe.selection == "batch_topk":
        f = z.relu() * ((z * norms if recipe.norm_weighted else z) > m.threshold)
    elif recipe.selection == "relu":
        f = z.relu()
    else:
        f = m.select(x).dense()
    out = f @ p["decoder"] + p["b_dec"]
    return f, out + x @ p["W_skip"] if recipe.skip else out


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_the_exported_dictionary_is_the_trained_function_on_raw_activations(name, scale):
    m = member(name)
    x, y = rows(m.config.recipe)
    for step in range(30):
        m.step(x, SCHEDULE, step, y)
    transcodes, target_scale = y is not None, 0.3
    # Every source of a crosscoder has a scale of its own, and latents are divided by their geometric mean.
    scales = [scale / 4, scale * 4] if m.config.recipe.inputs == "sources" else scale
    factors = torch.tensor(scales).repeat_interleave(12) if isinstance(scales, list) else scale
    exported = m.export(scales, {"site": "s"}, target_scale if transcodes else None)
    f, out = trained_function(m, x, y)
    got, codes = exported(x / factors), exported.encode(x / factors)
    assert torch.allclose(got * (target_scale if transcodes else factors), out, atol=2e-4)
    assert torch.equal(codes > 0, f > 0)
    assert f.count_nonzero() > len(f)
    norms = exported.W_dec.norm(dim=1)
    if not transcodes:
        assert torch.allclose(norms, torch.ones(64), atol=1e-5)
        raw = (m.decoder.detach() * scale / factors).norm(dim=1)
        assert torch.allclose(codes * scale, f * raw, atol=2e-4, rtol=1e-4)
    meta = exported.cfg.metadata
    assert meta["site"] == "s"
    by_penalty = m.config.recipe.sparsity == "coefficient"
    assert (meta["k"], meta.get("penalty")) == ((None, m.config.sparsity) if by_penalty else (4, None))
    assert exported.cfg.architecture == {"batch_topk": "jumprelu", "gated": "jumprelu"}.get(
        m.config.recipe.selection, m.config.recipe.selection
    )
    assert exported.group_sizes == (m.group_sizes if name in ("matryoshka_batch_topk", "matryoshka_relu") else (64,))
    assert exported.cfg.sources == layout(m.config.recipe).sources
    assert exported.cfg.d_out == layout(m.config.recipe).d_out


@pytest.mark.parametrize("selection", ["topk", "groupmax"])
@pytest.mark.parametrize("base", ["topk", "crosscoder_batch_topk"])
def test_scores_that_were_weighted_with_norms_are_exported_as_latents(selection, base):
    m = member(base, selection=selection, norm_weighted=True, constraint="free", aux_k=None)
    x, _ = rows(m.config.recipe)
    for step in range(30):
        m.step(x, SCHEDULE, step)
    with torch.no_grad():
        m.decoder[7] = 0  # it scores nothing, whatever its pre-activation
        m.b_enc[7] = 5.0
        m.decoder[::3] *= 4
    scales = [0.1, 10.0] if m.layout.sources else 0.5
    factors = torch.tensor(scales).repeat_interleave(12) if m.layout.sources else scales
    exported = m.export(scales, {})
    f = m.select(x).dense()
    out = f @ m.decoder.detach() + m.b_dec.detach()
    assert not exported.cfg.norm_weighted
    assert torch.equal(exported.encode(x / factors) > 0, f > 0)
    assert torch.allclose(exported(x / factors) * factors, out, atol=2e-4)


def test_a_gate_is_exported_as_the_threshold_that_equals_it():
    m = member("gated")
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("b_gate", "r_mag", "b_enc"):
            m.parameters[name] += 0.4 * torch.randn(64, generator=g)
    x = 3 * torch.randn(2000, 12, generator=g)
    f, out = trained_function(m, x, None)
    exported = m.export(1.0, {})
    assert torch.equal(exported.encode(x) > 0, f > 0)
    assert torch.allclose(exported(x), out, atol=1e-4)
    assert bool((exported.threshold >= 0).all())
    assert (exported.threshold == 0).any()
    assert (exported.threshold > 0).any()
    assert exported.cfg.metadata["threshold_source"] == "gate"


def test_the_calibrated_threshold_gives_exactly_k_latents_per_token():
    m, x = member("batch_topk"), data(tokens=4096)
    for step in range(30):
        m.step(x[:512], SCHEDULE, step)
    exported = m.export(1.0, {})
    threshold = calibrated_threshold(exported, x, 4, batch=300)
    counts = (exported.pre_activations(x) > threshold).sum()
    assert abs(int(counts) - 4 * 4096) <= 1
    done = calibrate(exported, x)
    assert done.cfg.metadata["threshold_source"] == "calibrated"
    assert done.cfg.metadata["recorded"]["l0"] == pytest.approx(4, rel=0.1)
    assert done.verify(x)["ok"]


def test_calibration_keeps_the_ratios_of_thresholds_that_were_weighted():
    m = member("crosscoder_batch_topk")
    x, _ = rows(m.config.recipe, tokens=4096)
    for step in range(30):
        m.step(x[:512], SCHEDULE, step)
    scales = [0.1, 10.0]
    exported = m.export(scales, {})
    raw = x / torch.tensor(scales).repeat_interleave(12)
    done = calibrate(exported, raw)
    ratio = done.threshold / exported.threshold
    assert torch.allclose(ratio, ratio[0].expand(64), rtol=1e-5)
    assert float(exported.threshold.std() / exported.threshold.mean()) > 0.1
    active = (done.encode(raw[:2048]) > 0).sum(dim=1).float().mean()
    assert float(active) == pytest.approx(4, abs=2 / 2048)
    assert done.cfg.metadata["threshold_calibrated"] == pytest.approx(float(done.threshold.median()), rel=1e-5)


def test_what_was_exported_stays_as_it_was_while_training_goes_on():
    m, x = member("batch_topk"), data()
    exported = m.export(1.0, {})
    before = exported.fingerprint()
    m.step(x, SCHEDULE, 0)
    assert exported.fingerprint() == before


def test_a_restored_step_counter_lies_where_the_kernel_of_adam_wants_it():
    trained = member("batch_topk")
    trained.step(data(), SCHEDULE, 0)
    for fused, device in ((True, "meta"), (False, "cpu")):
        m = Member(trained.config, 12, 10**9, torch.device("meta"))
        m.optimizer.defaults["fused"] = fused
        m.load_state_dict(trained.state_dict())
        assert {state["step"].device.type for state in m.optimizer.state.values()} == {device}
        assert {state["exp_avg"].device.type for state in m.optimizer.state.values()} == {"meta"}


class NoDoubles(TorchDispatchMode):
    """Refuses float64 as Apple GPUs do, except for copies to the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
            raise TypeError(f"{func} makes float64")
        return out


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_needs_no_float64(name):
    m = member(name, dead_after=512)
    x, y = rows(m.config.recipe)
    schedule = m.config.recipe.schedule(24)
    with NoDoubles():
        for step in range(5):
            m.step(x, schedule, step, y)


def test_a_threshold_of_too_few_positives_is_zero():
    m = member("batch_topk", k=4)
    with torch.no_grad():
        m.b_enc.fill_(-50)
    assert calibrated_threshold(m.export(1.0, {}), data(), 4) == 0.0


def test_geometric_median_ignores_outliers_and_survives_a_point_equal_to_the_guess():
    x = torch.cat([torch.zeros(99, 3), torch.full((1, 3), 1e4)])
    assert geometric_median(x).norm() < 1.0
    assert torch.equal(geometric_median(torch.ones(5, 2)), torch.ones(2))


def test_schedule_warms_up_holds_and_decays():
    s = Schedule.for_run(1000)
    assert s.multiplier(0) == pytest.approx(1 / 20)
    assert s.multiplier(20) == s.multiplier(799) == 1.0
    assert s.multiplier(900) == pytest.approx(0.5)
    assert 0 < s.multiplier(999) < 0.01
    assert all(Schedule.for_run(n).multiplier(n - 1) > 0 for n in (1, 2, 3, 7))


def test_default_learning_rate_follows_the_published_rule_in_long_runs():
    assert default_learning_rate(2**14, 10**6) == pytest.approx(2e-4)
    assert default_learning_rate(2**16, 10**6) == pytest.approx(1e-4)
    assert default_learning_rate(2**10, 10**6) == pytest.approx(4e-4)
    assert default_learning_rate(2**14, 10_000) == pytest.approx(4e-4)
    assert default_learning_rate(2**14, 100) == default_learning_rate(2**14, 10) == pytest.approx(3e-3)


def test_bad_settings_are_sentences():
    with pytest.raises(InputError, match="k must lie between 0 and the width"):
        member("batch_topk", k=64)
    with pytest.raises(InputError, match="Did you mean 'batch_topk'"):
        recipe("batchtopk")
    with pytest.raises(InputError, match="whole k"):
        member("topk", k=2.5)
    with pytest.raises(InputError, match="width of at least 32"):
        member("matryoshka_batch_topk", width=16)
    with pytest.raises(InputError, match="7 does not divide 64"):
        member("groupmax", k=7)
    with pytest.raises(InputError, match="must not be negative, but -1 was given"):
        member("relu", grid=(-1.0,))
    with pytest.raises(InputError, match="name it with --target-site"):
        Member(cell("transcoder"), 12, 10**9, CPU)
    with pytest.raises(InputError, match="several sites side by side"):
        Member(cell("crosscoder_l1"), 12, 10**9, CPU)
    with pytest.raises(InputError, match="takes neither pre_bias nor input_op"):
        member("transcoder", pre_bias=True)
    with pytest.raises(InputError, match="use --normalization none"):
        member("topk", input_op="layer_norm")
    with pytest.raises(InputError, match="no k that could fall"):
        member("relu", k_anneal=KAnneal())
    with pytest.raises(InputError, match="no k of which a multiple"):
        member("groupmax", multi=MultiTopK())
    with pytest.raises(InputError, match="has both fixed and sampled prefixes"):
        member("matryoshka_batch_topk", prefixes=10)
    with pytest.raises(InputError, match="leave sparsity at 'k'"):
        member("topk", sparsity="l0")
    with pytest.raises(InputError, match="'relu' selects by no k"):
        member("relu", sparsity="k")
    with pytest.raises(InputError, match="each of its penalties has one of its own"):
        member("relu", penalties=(L1(coefficient=0.1),))
    with pytest.raises(InputError, match="nothing aims at it"):
        member("relu", sparsity="l0")
    with pytest.raises(InputError, match="controls the weight of its penalties"):
        member("jumprelu", control=L0Control())
    with pytest.raises(InputError, match="'signum' has none"):
        member("relu", optimizer="signum")
    for wrong in ({"end": 0.0}, {"begin": 1.0}, {"finish": 1.5}, {"start": 0.1}):
        with pytest.raises(InputError, match="has an exponent that never falls"):
            member("p_anneal", penalties=(Lp(**wrong),))
    with pytest.raises(InputError, match="takes the root of a sum over all latents"):
        member("p_anneal", penalties=(Lp(root=True),), prefixes=4)
    several = Layout(12, d_out=20, targets=("up", "down"), target_widths=(8, 12))
    assert replace(cell("transcoder"), target="down").layout(several).d_out == 12
    with pytest.raises(InputError, match="has no target 'None'; it has up, down"):
        cell("transcoder").layout(several)
    assert cell("topk").layout(several) == Layout(12)
    with pytest.raises(InputError, match="has no source 'middle'; it has left, right"):
        replace(cell("topk"), source="middle").layout(layout(recipe("crosscoder_l1")))
