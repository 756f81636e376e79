"""Crosscoders of two models: what they minimise, what stays tied or zero, and that equal models stay equal."""

from dataclasses import replace

import pytest
import torch
from recipe_cases import CPU, layout, rows

from saeworks.activations.batches import Layout
from saeworks.errors import InputError
from saeworks.runtime import generator
from saeworks.training import dense, paths, sparse
from saeworks.training.catalogue import preset
from saeworks.training.cells import MemberConfig
from saeworks.training.inputs import Inputs
from saeworks.training.member import Member
from saeworks.training.objectives import score_norms
from saeworks.training.partitions import Across, Partitions
from saeworks.training.recipes import AuxK, recipe
from saeworks.training.schedules import KAnneal, Schedule, Span
from saeworks.world.synthetic.paired import PairedFeatures

D, WIDTH, K = 12, 40, 4
NAMES = [chosen.name for chosen in preset("diffing").recipes]


def member(chosen, width=WIDTH, seed=0, d=D, rate=3e-3):
    chosen = recipe(chosen) if isinstance(chosen, str) else chosen
    sparsity = chosen.grid[0] if chosen.sparsity == "coefficient" else K
    return Member(
        MemberConfig(chosen, width, sparsity, seed, rate), Layout(2 * d, sources=("base", "chat")), 10**9, CPU
    )


def trained(m, x, steps=20):
    m.initialise(x)
    schedule = m.config.recipe.schedule(steps)
    for step in range(steps):
        m.step(x, schedule, step)
    return m


def inputs(tokens=128, d=D, seed=0):
    return rows(recipe("crosscoder_l1"), tokens, d=d, seed=seed)[0]


def errors_of(m, x):
    p = m.partitions.joined(m.parameters)
    f = dense.select(m.config.recipe, p, x, m.moment(), m.widths).dense()
    return (f @ p["decoder"] + p["b_dec"] - x).view(len(x), 2, -1), f


@pytest.mark.parametrize("gamma", [-1.0, -0.4, 0.0])
def test_the_product_of_errors_leads_from_both_models_to_their_difference(gamma):
    x = inputs()
    chosen = recipe("diffing-difference", aux_k=None, across=Across(cross=gamma))
    m = trained(member(chosen), x)
    base, chat = errors_of(m, x)[0].unbind(1)
    expected = (base.square() + chat.square() + 2 * gamma * base * chat).sum(dim=1).mean()
    for path in (dense, sparse):
        found = path.losses(chosen, m.parameters, x, x, m.moment(), m.widths)[0]
        assert torch.allclose(found["total"], expected, rtol=1e-4)
        # What is logged as explained does not depend on what is minimised.
        plain = (base.square() + chat.square()).sum() / (x - x.mean(dim=0)).square().sum()
        assert torch.allclose(found["full"], plain, rtol=1e-4)
    if gamma == -1.0:
        assert torch.allclose(expected, (chat - base).square().sum(dim=1).mean(), rtol=1e-4)


@pytest.mark.parametrize("norms", ["sum", "joint"])
def test_scores_weigh_latents_by_the_norms_that_the_recipe_names(norms):
    x, chosen = inputs(), recipe("diffing-batch_topk", score_norms=norms, k_anneal=None, aux_k=None)
    m = trained(member(chosen), x)
    W = m.decoder.detach().view(WIDTH, 2, D)
    weights = W.norm(dim=2).sum(dim=1) if norms == "sum" else W.flatten(1).norm(dim=1)
    assert torch.allclose(score_norms(chosen, m.decoder, m.widths), weights)
    scores = (x @ m.encoder.detach().T + m.b_enc.detach()).relu() * weights
    least = scores.flatten().topk(K * len(x)).values.min()
    for path in (dense, sparse):
        found = path.select(chosen, m.parameters, x, m.moment(), m.widths).dense() > 0
        assert torch.equal(found, scores >= least)


def test_the_exported_threshold_selects_by_the_same_norms():
    x = inputs(2048)
    for name in ("diffing-batch_topk", "diffing-batch_topk_concatenated"):
        m = trained(member(recipe(name, k_anneal=None)), x, steps=40)
        d = m.export([1.0, 1.0], {})
        scores = (x @ m.encoder.detach().T + m.b_enc.detach()) * score_norms(m.config.recipe, m.decoder, m.widths)
        assert torch.equal(d.encode(x) > 0, scores > m.threshold)
        ratio, mine = (w[1] / w[0] for w in (d.decoder_norms(), m.decoder.detach().view(WIDTH, 2, D).norm(dim=2).T))
        assert torch.allclose(ratio, mine, rtol=1e-4)


def test_tied_latents_are_one_parameter():
    x = inputs()
    chosen = recipe("diffing-tied", grid=(0.2,))
    m = member(chosen)
    tied, whole = round(0.5 * WIDTH), m.decoder
    assert m.parameters["tied"].shape == (tied, D)
    assert m.parameters["decoder"].shape == (WIDTH - tied, 2 * D)
    assert torch.equal(whole[:tied, :D], whole[:tied, D:])
    m = trained(m, x)
    assert torch.equal(m.decoder[:tied, :D], m.decoder[:tied, D:])
    assert not torch.allclose(m.decoder[tied:, :D], m.decoder[tied:, D:], atol=1e-3)
    # The gradient of the shared row is the sum of what both copies would get.
    free = {name: p.detach().requires_grad_() for name, p in m.partitions.joined(m.parameters).items()}
    theirs = torch.autograd.grad(dense.losses(chosen, free, x, x, m.moment(), m.widths)[0]["total"], free["decoder"])[0]
    mine = torch.autograd.grad(m.losses(x)[0]["total"], m.parameters["tied"])[0]
    assert torch.allclose(mine, theirs[:tied, :D] + theirs[:tied, D:], rtol=1e-4, atol=1e-6)


def test_tied_latents_pay_less():
    x, chosen = inputs(), recipe("diffing-tied", grid=(0.2,), across=Across(tied=0.5, discount=0.25))
    m = trained(member(chosen), x)
    f = errors_of(m, x)[1]
    paid = f * m.decoder.detach().view(WIDTH, 2, D).norm(dim=2).sum(dim=1)
    expected = (0.25 * paid[:, : WIDTH // 2].sum(dim=1) + paid[:, WIDTH // 2 :].sum(dim=1)).mean()
    for path in (dense, sparse):
        p = m.partitions.joined(m.parameters)
        assert torch.allclose(path.losses(chosen, p, x, x, m.moment(), m.widths)[0]["l1"], expected, rtol=1e-4)


def test_latents_of_one_model_write_nothing_to_the_other():
    x = inputs()
    m = member(recipe("diffing-dedicated", across=Across(exclusive=0.2), k_anneal=None))
    start, own = m.decoder.detach().clone(), round(0.2 * WIDTH)
    m = trained(m, x)
    first, second, rest = m.decoder[:own], m.decoder[own : 2 * own], m.decoder[2 * own :]
    assert not first[:, D:].any()
    assert not second[:, :D].any()
    assert (first[:, :D] != start[:own, :D]).any()
    assert (rest != 0).all()
    assert (m.encoder[:own] != 0).all(), "they read both models"
    assert m.export([1.0, 1.0], {}).cfg.metadata["partitions"] == {"exclusive": own}


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_of_a_step_end_at_the_same_weights(name, monkeypatch):
    x, ends = inputs(), []
    for faster in (True, False):
        monkeypatch.setattr(sparse, "covers", lambda _, faster=faster: faster)
        monkeypatch.setattr(paths, "DENSEST", 1.0)
        ends.append(trained(member(name, width=41, rate=1e-3), x, steps=4))
    for parameter, value in ends[0].parameters.items():
        near = (value - ends[1].parameters[parameter]).abs() < 1e-4
        assert near.float().mean() > 0.98, parameter


def test_dead_latents_are_revived_through_tied_and_exclusive_rows(monkeypatch):
    """The auxiliary term alone reaches dead latents, along either way of a step."""
    x, ends = inputs(), []
    chosen = recipe("diffing-batch_topk", across=Across(tied=0.4, exclusive=0.2), aux_k=AuxK(k=8), k_anneal=None)
    for faster in (True, False):
        monkeypatch.setattr(sparse, "covers", lambda _, faster=faster: faster)
        m = member(chosen, rate=1e-3)
        m.initialise(x)
        with torch.no_grad():
            m.b_enc[::3] -= 0.05  # some that are not selected, but would be active
        m.tokens_since_fired[::3] = 10**9
        before = m.decoder.detach().clone()
        for step in range(3):
            m.step(x, Schedule.for_run(20), step)
        moved = (m.decoder.detach() - before).abs().sum(dim=1)[::3]
        assert (moved > 0).float().mean() > 0.5
        ends.append(m.decoder.detach())
    assert ((ends[0] - ends[1]).abs() < 1e-4).float().mean() > 0.98
    assert not ends[0][:8, D:].any()
    assert torch.equal(ends[0][16:32, :D], ends[0][16:32, D:])


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_member_goes_on_to_the_same_bits(name):
    x, schedule = inputs(), Schedule.for_run(12)
    whole, halves = member(name), member(name)
    for m in (whole, halves):
        m.initialise(x)
    for step in range(6):
        whole.step(x, schedule, step)
        halves.step(x, schedule, step)
    again = member(name)
    again.load_state_dict(halves.state_dict())
    for step in range(6, 12):
        whole.step(x, schedule, step)
        again.step(x, schedule, step)
    assert all(torch.equal(whole.parameters[n], p) for n, p in again.parameters.items())


@pytest.mark.parametrize("name", [n for n in NAMES if n != "diffing-dedicated"])
def test_a_model_and_itself_stay_equal(name):
    pair = PairedFeatures(shared=12, base_only=2, chat_only=2, decoupled=1, weak_in_base=1, d=D).null()
    m, draw = member(name), generator(0, "null")
    m.initialise(pair.sample(512, draw).activations)
    schedule = m.config.recipe.schedule(60)
    for step in range(60):
        m.step(pair.sample(256, draw).activations, schedule, step)
    base, chat = m.decoder.detach().view(WIDTH, 2, D).unbind(1)
    assert (base - chat).abs().max() <= 1e-6
    assert (m.encoder.detach()[:, :D] - m.encoder.detach()[:, D:]).abs().max() <= 1e-6


def test_exchanged_models_give_the_exchanged_crosscoder():
    pair = PairedFeatures(shared=12, base_only=3, chat_only=3, decoupled=1, weak_in_base=1, d=D)
    found = []
    for one in (pair, pair.swapped()):
        m, draw = member("diffing-l1"), generator(0, "swap")
        m.initialise(one.sample(512, draw).activations)
        schedule = m.config.recipe.schedule(80)
        for step in range(80):
            m.step(one.sample(256, draw).activations, schedule, step)
        found.append(m.decoder.detach().view(WIDTH, 2, D).norm(dim=2))
    assert torch.allclose(found[0], found[1].flip(1), atol=1e-3)
    assert (found[0][:, 0] - found[0][:, 1]).abs().max() > 0.02, "the models do differ"


def test_sources_begin_alike_and_their_encoders_add_up_to_one():
    m = member("diffing-batch_topk")
    rows_of = m.decoder.detach().view(WIDTH, 2, D)
    assert torch.equal(rows_of[:, 0], rows_of[:, 1])
    assert torch.allclose(rows_of.norm(dim=2), torch.ones(WIDTH, 2))
    assert torch.equal(m.encoder.detach() * 2, m.decoder.detach())
    x = torch.randn(5, D, generator=generator(0, "alike"))
    assert torch.allclose(torch.cat([x, x], dim=1) @ m.encoder.detach().T, x @ rows_of[:, 0].T, atol=1e-5)


def test_k_falls_from_where_it_was_told_to():
    assert [KAnneal(k_max=16, over=Span(None, 0.2)).k(3, 192, 128, step, 100) for step in (0, 10, 19, 20, 99)] == [
        16,
        10,
        4,
        3,
        3,
    ]
    assert KAnneal(times=5.0, over=Span(5000, 0.5)).k(100, 4096, 64, 0, 10_000) == 500
    assert KAnneal(k_max=1000, over=Span(None, 0.5)).k(3, 192, 128, 0, 100) == 192, "not beyond the number of latents"
    assert KAnneal(widths=2.0).k(3, 4096, 64, 0, 100) == 128
    m = member("diffing-batch_topk")
    ks = [m.moment(Schedule.for_run(100), step).k for step in (0, 10, 20, 50)]
    assert ks == [20, 12, 4, 4]
    assert member(recipe("diffing-batch_topk", k_anneal=None)).moment(Schedule.for_run(100), 0).k == K


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k_anneal": KAnneal(k_max=16, over=Span(0, 1.0))}, "no step to fall in"),
        ({"k_anneal": KAnneal(k_max=16, over=Span(100, 0.0))}, "no step to fall in"),
        ({"k_anneal": KAnneal(k_max=16, times=2.0)}, "twice at which k"),
        ({"across": Across(exclusive=0.6)}, "more than the width"),
        ({"across": Across(exclusive=1.2)}, "not within"),
        ({"across": Across(cross=0.5)}, "outside"),
        ({"across": Across(cross=-0.5), "reconstruction": "norm"}, "norms, which have no product"),
        ({"across": Across(tied=0.5), "constraint": "unit"}, "free norm"),
        ({"across": Across(tied=0.5), "reorder": True}, "must stay where they are"),
        ({"across": Across(tied=0.5), "inputs": "same"}, "reads only one"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        member(recipe("diffing-batch_topk", **changes))


def test_models_of_different_width_have_no_tied_latents_and_no_product_of_errors():
    for across, words in ((Across(tied=0.5), "leave tied at 0"), (Across(cross=-1.0), "leave cross at 0")):
        with pytest.raises(InputError, match=words):
            Partitions.of(across, 16, (4, 6))
    cell = MemberConfig(recipe("diffing-l1"), 16, 0.02, 0, 1e-3)
    with pytest.raises(InputError, match="begin with other weights"):
        Member(cell, Layout(10, ("base", "chat"), (4, 6)), 10**9, CPU)
    left = Partitions.of(Across(exclusive=0.25), 16, (4, 6)).clear_(torch.ones(16, 10))
    assert left.sum(dim=1).tolist() == [4] * 4 + [6] * 4 + [10] * 8


def test_one_scale_for_all_sources_keeps_their_sizes_comparable():
    place = layout(recipe("crosscoder_l1"))
    batch = type("Rows", (), {})()
    batch.activations, batch.targets = inputs(512) * torch.tensor([3.0] * D + [1.0] * D), None
    found = Inputs(place)
    found.estimate(batch, "shared")
    scales = [found.normalizations[f"shared/{name}"].scale for name in place.sources]
    assert scales[0] == scales[1]
    scaled = batch.activations * scales[0]
    assert float(scaled.square().sum(dim=1).mean()) == pytest.approx(2.0, rel=1e-4), "1 on average over the sources"


def test_aux_k_scores_follow_the_norms_of_the_recipe():
    x = inputs()
    chosen = recipe("diffing-batch_topk_concatenated", aux_k=AuxK(k=2), k_anneal=None)
    m = trained(member(chosen), x)
    moment = replace(m.moment(), dead=torch.arange(0, WIDTH, 3))
    p = {name: value.detach().double() for name, value in m.parameters.items()}
    ways = [path.losses(chosen, p, x.double(), x.double(), moment, m.widths)[0]["aux"] for path in (dense, sparse)]
    assert torch.allclose(*ways, rtol=1e-10)


@pytest.mark.parametrize(("name", "least"), [("diffing-l1", 12), ("diffing-batch_topk", 9)])
def test_three_models_have_one_crosscoder_that_tells_whose_a_concept_is(name, least):
    """12 orthogonal concepts, by fours: of all three models, of the second and third, of the third alone."""
    draw = generator(1, "three models")
    directions = torch.linalg.qr(torch.randn(D, D, generator=draw)).Q
    present = torch.ones(3, D)  # [model, concept]
    present[0, 4:], present[1, 8:] = 0, 0
    chosen = recipe(name)
    sparsity = 0.1 if chosen.sparsity == "coefficient" else 2
    m = Member(MemberConfig(chosen, WIDTH, sparsity, 0, 1e-2), Layout(3 * D, sources=("base", "sft", "rl")), 10**9, CPU)

    def batch(tokens):
        codes = (torch.rand(tokens, D, generator=draw) < 0.15) * (1 + torch.rand(tokens, D, generator=draw))
        return torch.cat([(codes * mask) @ directions for mask in present], dim=1), codes

    m.initialise(batch(1024)[0])
    schedule = chosen.schedule(500)
    for step in range(500):
        m.step(batch(256)[0], schedule, step)
    x, codes = batch(2000)
    p = m.partitions.joined(m.parameters)
    f = dense.select(chosen, p, x, m.moment(), m.widths).dense()
    unexplained = (f @ p["decoder"] + p["b_dec"] - x).square().sum() / (x - x.mean(dim=0)).square().sum()
    assert unexplained < 0.2
    together = torch.corrcoef(torch.cat([f, codes], dim=1).T).nan_to_num()[:WIDTH, WIDTH:]
    best = together.argmax(dim=0)  # [concept] the latent that follows it
    norms = p["decoder"].detach().view(WIDTH, 3, D).norm(dim=2)[best]
    held = norms / norms.amax(dim=1, keepdim=True)
    right = ((held > 0.25) == present.T.bool()).all(dim=1) & (together.amax(dim=0) > 0.7)
    assert int(right.sum()) >= least, "so short a run may split a concept where a budget binds"
