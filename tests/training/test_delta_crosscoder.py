"""Delta-Crosscoder: two sets of latents with a k of their own, and a loss on what differs between the models."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from recipe_cases import CPU, hard_rows, rows, scrambled

import saeworks
from saeworks.activations.batches import Layout
from saeworks.diffing.paired_stream import synthetic_stream
from saeworks.errors import InputError
from saeworks.runtime import generator
from saeworks.training import dense, divided, paths, sparse
from saeworks.training.calibration import calibrate
from saeworks.training.catalogue import settings_of
from saeworks.training.cells import MemberConfig
from saeworks.training.identity import _completed, same_run
from saeworks.training.member import Member
from saeworks.training.objectives import score_norms
from saeworks.training.partitions import Across, Delta, Partitions
from saeworks.training.recipes import MultiTopK, recipe
from saeworks.training.schedules import Schedule
from saeworks.training.trainer import Trainer, TrainerConfig
from saeworks.world.synthetic.paired import PairedFeatures

D, WIDTH, K, TOKENS = 12, 40, 4, 24
SHARE, PART, WEIGHT = 0.2, 0.4, 1.7  # of latents, of k, of the loss
OWN = 8  # latents of the difference, the last of 40
CHOSEN = recipe("diffing-delta", across=Across(delta=Delta(SHARE, PART, WEIGHT)), k_anneal=None)
DEAD = [3, 7, 20, 35]


def member(chosen=CHOSEN, width=WIDTH, k=K, d=D, rate=3e-3):
    chosen = recipe(chosen) if isinstance(chosen, str) else chosen
    place = Layout(2 * d, sources=("base", "chat"))
    return Member(MemberConfig(chosen, width, k, 0, rate), place, 10**9, CPU)


def inputs(tokens=512):
    return rows(recipe("crosscoder_l1"), tokens, d=D)[0]


def trained(m, x, steps=20):
    m.initialise(x)
    for step in range(steps):
        m.step(x, Schedule.for_run(steps), step)
    return m


def case(chosen=CHOSEN):
    m = member(chosen)
    p = scrambled(m)
    x, _ = hard_rows(chosen, p, TOKENS)
    return m, p, x, replace(m.moment(), dead=torch.tensor(DEAD))


def largest(scores, count):
    """The ``count`` largest positive scores of a whole batch; of equal ones the first."""
    order = sorted(range(scores.numel()), key=lambda i: (-float(scores.flatten()[i]), i))
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask.view(-1)[order[:count]] = True
    return mask & (scores > 0)


def by_hand(p, x):
    """The loss as it is written: every line a sentence of the source, but for AuxK, which is ours."""
    W, base, chat = p["decoder"], x[:, :D], x[:, D:]
    W_base, W_chat = W[:, :D], W[:, D:]
    # The encoder averages the sources: the stored rows are half of the rows of either.
    E_base, E_chat = 2 * p["encoder"][:, :D], 2 * p["encoder"][:, D:]
    z = (base @ E_base.T + chat @ E_chat.T) / 2 + p["b_enc"]
    norms = W_base.norm(dim=1) + W_chat.norm(dim=1)
    scores = (z * norms).detach()
    shared = largest(scores[:, :-OWN], round((1 - PART) * K * len(x)))
    delta = largest(scores[:, -OWN:], round(PART * K * len(x)))
    f = z * torch.cat([shared, delta], dim=1)
    error_base = base - f @ W_base - p["b_dec"][:D]
    error_chat = chat - f @ W_chat - p["b_dec"][D:]
    loss = (error_base.square().sum(dim=1) + error_chat.square().sum(dim=1)).mean()
    differs = f[:, -OWN:] @ (W_chat[-OWN:] - W_base[-OWN:]) - (chat - base)
    loss = loss + WEIGHT * differs.square().sum(dim=1).mean()
    residual = torch.cat([error_base, error_chat], dim=1).detach()
    guess = z[:, DEAD].relu() @ W[DEAD]  # fewer dead latents than may take part, so all do
    aux = (residual - guess).square().sum() / (residual - residual.mean(dim=0)).square().sum()
    return loss + aux / 32 * (x - x.mean(dim=0)).square().sum(dim=1).mean(), f


@pytest.mark.parametrize("path", [dense, sparse, divided])
def test_the_loss_and_its_gradients_are_the_written_formula(path):
    m, p, x, moment = case()
    losses, codes = path.losses(CHOSEN, p, x, x, moment, m.widths)
    expected, f = by_hand(p, x)
    assert torch.allclose(codes.dense(), f.detach(), rtol=1e-10)
    assert torch.allclose(losses["total"], expected, rtol=1e-11)
    mine = torch.autograd.grad(losses["total"], list(p.values()))
    theirs = torch.autograd.grad(expected, list(p.values()))
    for name, one, other in zip(p, mine, theirs, strict=True):
        assert one.abs().max() > 0, name
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12), name


def test_the_recipe_without_the_loss_is_that_of_two_budgets_and_no_more():
    m, p, x, moment = case()
    plain = replace(CHOSEN, across=Across(delta=Delta(SHARE, PART, 0.0)))
    with_it, without = (dense.losses(one, p, x, x, moment, m.widths)[0] for one in (CHOSEN, plain))
    assert torch.allclose(with_it["total"] - without["total"], WEIGHT * with_it["delta"], rtol=1e-9)
    assert torch.equal(with_it["reconstruction"], without["reconstruction"])


@pytest.mark.parametrize("louder", [slice(0, -OWN), slice(-OWN, None)])
def test_no_set_takes_from_the_budget_of_the_other(louder):
    m, x = member(), inputs().double()
    p = {name: value.detach().double() for name, value in m.parameters.items()}
    p["b_enc"] = p["b_enc"] + 0.5  # more than enough are positive
    p["decoder"][louder] *= 100
    for path in (dense, sparse, divided):
        active = path.select(CHOSEN, p, x, m.moment(), m.widths).dense() > 0
        assert int(active[:, :-OWN].sum()) == round((1 - PART) * K * len(x))
        assert int(active[:, -OWN:].sum()) == round(PART * K * len(x))


def test_one_set_may_be_short_of_candidates_while_the_other_is_not():
    """The search guesses a floor for each set from the first block; where one guess fails, all is searched again."""
    m, p, x, moment = case()
    with torch.no_grad():
        p["b_enc"][-OWN:] -= 2.0
    chosen = replace(CHOSEN, multi=MultiTopK(factor=3), aux_k=None)
    reference, selected = dense.losses(chosen, p, x, x, moment, m.widths)
    fast, codes = sparse.losses(chosen, p, x, x, moment, m.widths)
    assert torch.equal(codes.indices, selected.indices)
    assert 0 < int((codes.indices >= WIDTH - OWN).sum()) < round(PART * K * TOKENS)
    assert torch.allclose(fast["total"], reference["total"], rtol=1e-10)


def test_each_set_has_the_threshold_of_its_own_selection():
    m, x, own = trained(member(width=160), inputs()), inputs(4096), 32
    thresholds = [one.value for one in m.smallest]
    assert len(thresholds) == 2
    assert thresholds[0] != pytest.approx(thresholds[1], rel=0.01)
    scores = (x @ m.encoder.detach().T + m.b_enc.detach()) * score_norms(CHOSEN, m.decoder, m.widths)
    limits = torch.tensor(thresholds).repeat_interleave(torch.tensor([160 - own, own]))
    exported = m.export([0.5, 0.5], {})
    assert torch.equal(exported.encode(2 * x) > 0, scores > limits)
    assert exported.cfg.metadata["partitions"] == {"delta": own}
    # After calibration every set has its own k on new tokens, whatever the moving averages were.
    done = calibrate(exported, 2 * x)
    active = done.encode(2 * x[:2048]) > 0
    assert float(active[:, :-own].sum(dim=1).float().mean()) == pytest.approx((1 - PART) * K, abs=2 / 2048)
    assert float(active[:, -own:].sum(dim=1).float().mean()) == pytest.approx(PART * K, abs=2 / 2048)
    assert len(done.cfg.metadata["threshold_calibrated"]) == 2
    assert done.cfg.metadata["recorded"]["l0"] == pytest.approx(K, rel=0.1)


def test_it_is_saved_and_read_like_any_crosscoder(tmp_path):
    x = inputs(1024)
    done = calibrate(trained(member(), inputs()).export([1.0, 1.0], {}), x)
    done.save(tmp_path / "d")
    again = saeworks.load(tmp_path / "d")
    assert torch.equal(again.encode(x), done.encode(x))
    assert again.cfg.metadata["budgets"] == [{"latents": 32, "k": 2.4}, {"latents": 8, "k": 1.6}]


def test_a_resumed_member_has_both_thresholds():
    x, schedule = inputs(), Schedule.for_run(12)
    m, again = trained(member(), x, 6), member()
    again.load_state_dict(m.state_dict())
    assert [one.value for one in again.smallest] == [one.value for one in m.smallest]
    for one in (m, again):
        one.step(x, schedule, 6)
    assert all(torch.equal(m.parameters[name], p) for name, p in again.parameters.items())
    assert again.smallest == m.smallest


def test_a_run_goes_on_from_its_checkpoint_to_the_same_dictionary(tmp_path):
    pair = PairedFeatures(shared=12, base_only=2, chat_only=2, overlaps=(), weak_levels=(0.5,), d=D)
    cells = [MemberConfig(recipe("diffing-delta"), WIDTH, K, 0, 3e-3)]
    config = TrainerConfig(
        tokens=64 * 24, batch_size=64, checkpoint_every=12, normalization_tokens=512, calibration_tokens=1024
    )
    (name, done), *_ = Trainer(synthetic_stream(pair, 0), cells, config, tmp_path / "a").run().items()
    half = tmp_path / "b" / "checkpoints" / "step-12"
    shutil.copytree(tmp_path / "a" / "checkpoints" / "step-12", half)
    again = Trainer(synthetic_stream(pair, 0), cells, config, tmp_path / "b").run(resume=True)[name]
    assert again.fingerprint() == done.fingerprint()
    found = saeworks.load(tmp_path / "b" / "dictionaries" / name)
    assert found.cfg.metadata["budgets"] == [{"latents": 30, "k": 3.0}, {"latents": 10, "k": 1.0}]
    log = [json.loads(line) for line in (tmp_path / "b" / "train_log.jsonl").read_text().splitlines()]
    assert all(line["losses/delta"] > 0 and line["details/threshold_delta"] >= 0 for line in log)


def test_runs_of_a_version_without_this_set_go_on():
    across = {"exclusive": 0.05, "tied": 0.0, "discount": 1.0, "cross": 0.0}
    saved = {"recipe": {"name": "a", "selection": "batch_topk", "across": across}, "width": 8}
    mine = {"source": None, "target": None, "width": 8}
    full = _completed(saved)
    assert full["recipe"]["across"] == {**across, "delta": None}
    assert same_run({"members": {"a": {**full, **mine}}}, {"members": {"a": saved}}) is None


def test_the_loss_moves_what_differs_into_the_set():
    """Two features are the chat model's alone, of 16. Over seeds 0 to 2: 0.36 against 0.12 with the loss, 0.20 and 0.13
    without it."""
    pair = PairedFeatures(shared=14, base_only=0, chat_only=2, overlaps=(), weak_in_base=0, weak_in_chat=0, d=D)
    left, differs = {}, {}
    for weight in (0.0, 1.0):
        chosen = recipe("diffing-delta", across=Across(delta=Delta(SHARE, PART, weight)))
        m, draw = member(chosen), generator(0, "delta")
        m.initialise(pair.sample(1024, draw).activations)
        schedule = chosen.schedule(100)
        for step in range(100):
            left[weight] = float(m.step(pair.sample(256, draw).activations, schedule, step)["delta"])
        rows_of = m.decoder.detach().view(WIDTH, 2, D)
        relative = (rows_of[:, 1] - rows_of[:, 0]).norm(dim=1) / rows_of.norm(dim=2).sum(dim=1)
        differs[weight] = float(relative[-OWN:].mean() / relative[:-OWN].mean())
    assert left[1.0] < 0.7 * left[0.0]
    assert differs[0.0] < 2 < 2.5 < differs[1.0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"selection": "topk"}, "'batch_topk' alone selects"),
        ({"reconstruction": "normalized"}, "measure errors squared"),
        ({"across": Across(delta=Delta(latents=1.0))}, "not within"),
        ({"across": Across(delta=Delta(k=0.0))}, "not within"),
        ({"across": Across(delta=Delta(weight=-1.0))}, "negative weight"),
        ({"across": Across(delta=Delta(latents=0.02, k=0.5))}, "would select 2 of a set of 1 latents"),
        ({"across": Across(tied=0.8, delta=Delta(latents=0.25))}, "10 for their difference"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        member(recipe("diffing-delta", **changes))


def test_models_of_different_width_have_no_difference():
    with pytest.raises(InputError, match="leave delta out"):
        Partitions.of(Across(delta=Delta()), 16, (4, 6))


def test_the_listing_says_which_numbers_are_ours():
    rows_of = {row["setting"]: (row["value"], row["source"]) for row in settings_of("diffing-delta")}
    value, source = rows_of["across.delta"]
    assert value == "Delta(latents 0.25, k 0.25, weight 1)"
    assert "2603.04426" in source
    assert "ours" in source


def test_paths_take_the_same_steps(monkeypatch):
    x, ends = inputs(128), []
    for faster in (True, False):
        monkeypatch.setattr(sparse, "covers", lambda _, faster=faster: faster)
        monkeypatch.setattr(paths, "DENSEST", 1.0)
        ends.append(trained(member(rate=1e-3), x, steps=4))
    for name, value in ends[0].parameters.items():
        assert ((value - ends[1].parameters[name]).abs() < 1e-4).float().mean() > 0.98, name
