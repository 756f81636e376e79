"""One dictionary in training: constraints, dead latents, thresholds, side effects, exported parameters."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from saeworks.errors import InputError
from saeworks.training.calibration import calibrate, calibrated_threshold
from saeworks.training.member import Member, MemberConfig, geometric_median
from saeworks.training.recipes import RECIPES, recipe
from saeworks.training.schedules import Schedule, default_learning_rate

SCHEDULE = Schedule.for_run(400)
CPU = torch.device("cpu")


def data(tokens=512, d=12, features=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(features, d, generator=g), dim=1)
    codes = (torch.rand(tokens, features, generator=g) < 0.05) * torch.rand(tokens, features, generator=g)
    return codes @ directions + 0.3


def member(name="batch_topk", width=64, k=4, dead_after=10**9, lr=3e-3, d=12, **changes):
    m = Member(MemberConfig(recipe(name, **changes), width, k, 0, lr), d, dead_after, CPU)
    m.initialise(data(d=d))
    return m


@pytest.mark.parametrize("name", RECIPES)
def test_a_hundred_steps_reduce_the_error_and_keep_decoder_rows_at_norm_one(name):
    m, x = member(name), data()
    before = float(m.losses(x)[0]["reconstruction"])
    for step in range(100):
        m.step(x, SCHEDULE, step)
    assert float(m.losses(x)[0]["reconstruction"]) < 0.5 * before
    assert torch.allclose(m.decoder.norm(dim=1), torch.ones(64), atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_asking_for_the_loss_changes_nothing(name):
    m, x = member(name, dead_after=256), data()
    for step in range(3):
        m.step(x, SCHEDULE, step)

    def snapshot():
        return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in m.state_dict().items()}

    before = snapshot()
    m.losses(x)
    m.losses(x)
    after = snapshot()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) if isinstance(value, torch.Tensor) else value == after[key], key


def test_dead_latents_are_counted_in_tokens_and_revived_by_aux_k():
    x = data()
    m = member(width=64, k=2, dead_after=1024)
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
    without = member(width=64, k=2, dead_after=1024, aux_k=None)
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
    m, x = member(), data()
    with torch.no_grad():
        m.decoder[0] = 0
    for step in range(5):
        m.step(x, SCHEDULE, step)
    assert all(bool(p.isfinite().all()) for p in m.parameters.values())


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_the_exported_dictionary_is_the_trained_function_on_raw_activations(name, scale):
    m, x = member(name), data()
    for step in range(30):
        m.step(x, SCHEDULE, step)
    exported = m.export(scale, {"site": "s"})
    raw = x / scale
    z = (x - m.b_dec) @ m.encoder.T + m.b_enc
    assert torch.allclose(exported.pre_activations(raw) * scale, z, atol=1e-4)
    assert torch.allclose(exported.W_dec.norm(dim=1), torch.ones(64), atol=1e-6)
    assert exported.cfg.metadata["site"] == "s"
    if name == "topk":
        trained = m.select(x).dense() @ m.decoder + m.b_dec
        assert torch.allclose(exported(raw) * scale, trained, atol=1e-4)
    else:
        assert exported.cfg.architecture == "jumprelu"
        assert float(exported.threshold[0]) * scale == pytest.approx(m.threshold, rel=1e-5)
    assert exported.group_sizes == (m.group_sizes if name.startswith("matryoshka") else (64,))


def test_the_calibrated_threshold_gives_exactly_k_latents_per_token():
    m, x = member(), data(tokens=4096)
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


def test_what_was_exported_stays_as_it_was_while_training_goes_on():
    m, x = member(), data()
    exported = m.export(1.0, {})
    before = exported.fingerprint()
    m.step(x, SCHEDULE, 0)
    assert exported.fingerprint() == before


def test_a_restored_step_counter_lies_where_the_kernel_of_adam_wants_it():
    trained = member()
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
    m, x = member(name, dead_after=512), data()
    with NoDoubles():
        for step in range(3):
            m.step(x, SCHEDULE, step)


def test_a_threshold_of_too_few_positives_is_zero():
    m = member(k=4)
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
        member(k=64)
    with pytest.raises(InputError, match="Did you mean 'batch_topk'"):
        recipe("batchtopk")
    with pytest.raises(InputError, match="whole k"):
        member("topk", k=2.5)
    with pytest.raises(InputError, match="width of at least 32"):
        member("matryoshka_batch_topk", width=16)
