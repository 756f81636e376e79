"""The way along the entries against dense matrices: same losses, codes and gradients, no large matrix, one product.

Sizes are multiples of nothing, blocks of rows are small and the last one is smaller still. A batch holds a token
without any active latent, equal tokens and latents, and dead latents.
"""

from dataclasses import replace

import pytest
import torch
from recipe_cases import CPU, cell, data, layout, rows
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from saeworks.dictionaries.kernels import product
from saeworks.runtime import generator
from saeworks.training import dense, entries, paths, sparse
from saeworks.training.catalogue import preset_recipes
from saeworks.training.entries import TooDense
from saeworks.training.member import Member
from saeworks.training.partitions import Across, Delta
from saeworks.training.penalties import L0, L1, Frequency, Lp, PreAct, Tanh, TargetL0
from saeworks.training.recipes import RECIPES, Jump, MultiTopK, recipe
from saeworks.training.schedules import Schedule

TOKENS, WIDTH, D, K = 61, 307, 13, 5
VARIANTS = {
    "multi": recipe("topk", multi=MultiTopK(factor=3)),
    "multi_batch": recipe("batch_topk", multi=MultiTopK(), norm_weighted=True, constraint="free"),
    "tanh": replace(recipe("anthropic-jan25"), grid=(0.4,), jump=Jump(bandwidth=0.3, everywhere=True)),
    "nested_frequency": recipe("matryoshka_relu", penalties=(L1(norms="sum"), Frequency(cap=0.02, coefficient=0.5))),
    "pulled": recipe("jumprelu", penalties=(TargetL0(), PreAct(coefficient=0.2), Tanh(coefficient=0.3))),
    "norm_of_error": recipe("crosscoder-chat"),
    "joint_scores": recipe("diffing-batch_topk_concatenated", selection="topk"),
    "joint_penalty": recipe("diffing-l1_concatenated"),
    "difference": recipe("diffing-difference", selection="topk"),
    "delta": recipe("diffing-delta"),
    "delta_and_multi": recipe("diffing-delta", across=Across(exclusive=0.1, delta=Delta(0.4, 0.7)), multi=MultiTopK(2)),
    "tanh_of_two": recipe("diffing-jumprelu", jump=Jump(bandwidth=0.3, everywhere=True)),
    "root": recipe("p_anneal", penalties=(Lp(root=True),)),
    "sparse_aux": recipe("batch_topk", aux_k=replace(RECIPES["topk"].aux_k, k=2)),
}
# Of tied latents the parameters exist once; test_crosscoders.py compares both ways of their steps.
PUBLISHED = {name: chosen for name, chosen in preset_recipes().items() if not (chosen.across and chosen.across.tied)}
CASES = {**RECIPES, **PUBLISHED, **VARIANTS}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Seven rows of pre-activations at a time."""
    monkeypatch.setattr(product, "BLOCK", 7 * WIDTH)


def case(name, dtype=torch.float64, tokens=TOKENS):
    """Parameters some way into training, rows, targets and a moment; about ``K`` of the latents are active."""
    chosen = CASES[name]
    width = WIDTH - WIDTH % K if chosen.selection == "groupmax" else WIDTH
    m = Member(cell(chosen, width, K), layout(chosen, D), 10**9, CPU)
    x, y = (None if t is None else t.double() for t in rows(chosen, tokens, d=D))
    draw = generator(0, "fast path")
    x += 0.01 * torch.randn(x.shape, generator=draw, dtype=torch.float64)  # no two tokens are equal but those below
    p = {
        n: 0.2 * torch.randn(v.shape, generator=draw, dtype=torch.float64) + v.double() for n, v in m.parameters.items()
    }
    z = (x - p["b_dec"] if chosen.pre_bias else x) @ p["encoder"].T
    level = z.flatten().kthvalue(int(z.numel() * (1 - K / width))).values
    if "threshold" in p:
        p["threshold"] = level * (1 + 0.2 * torch.rand(width, generator=draw, dtype=torch.float64))
        p["b_enc"] *= 0
    else:
        p["b_gate" if "b_gate" in p else "b_enc"] -= level
    x[0] = p["b_dec"] if chosen.pre_bias else 0  # nothing is active here: its pre-activations are the biases
    for bias in p.keys() & {"b_enc", "b_gate"}:
        p[bias].clamp_(max=0)
    if tokens > 2:
        x[-1] = x[-2]
    for value in (v for n, v in p.items() if v.shape[:1] == (width,) and n != "decoder"):
        value[9] = value[8]  # two latents that always tie
    p["decoder"][9] = p["decoder"][8]
    dead = torch.tensor([1, 8, 9, 40, 200, 299])
    moment = replace(m.moment(), dead=dead, p=0.6, next_p=0.4, bandwidth=0.3, penalty=0.2, warm=0.7)
    p = {n: v.detach().to(dtype).requires_grad_() for n, v in p.items()}
    x, y = x.to(dtype), (x if y is None else y).to(dtype)
    return chosen, p, x, y, moment, m.widths


def gradients(loss, p):
    found = torch.autograd.grad(loss, list(p.values()), allow_unused=True)
    return {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(p.items(), found, strict=True)}


def test_every_recipe_has_a_fast_path():
    assert all(sparse.covers(chosen) for chosen in CASES.values())
    # Who selects by k, or by a gate, does not know where z lies elsewhere.
    assert not sparse.covers(recipe("topk", penalties=(L0(coefficient=1.0),)))
    assert not sparse.covers(recipe("gated", penalties=(PreAct(),)))


@pytest.mark.parametrize("name", CASES)
def test_in_float64_losses_codes_and_gradients_are_those_of_the_dense_path(name):
    chosen, p, x, y, moment, widths = case(name)
    reference, selected = dense.losses(chosen, p, x, y, moment, widths)
    fast, codes = sparse.losses(chosen, p, x, y, moment, widths)
    assert torch.equal(codes.indices, selected.indices)
    assert torch.equal(codes.offsets, selected.offsets)
    assert torch.allclose(codes.values, selected.values, rtol=1e-10, atol=1e-13)
    assert TOKENS < codes.values.numel() < 3 * K * TOKENS
    assert codes.counts()[0] == 0
    assert fast.keys() == reference.keys()
    for term, value in reference.items():
        rtol = 1e-6 if term == "in_window" else 1e-10  # a share counted in float32
        assert torch.allclose(fast[term], value, rtol=rtol, atol=1e-13), term
    mine, theirs = gradients(fast["total"], p), gradients(reference["total"], p)
    for parameter, gradient in theirs.items():
        assert torch.allclose(mine[parameter], gradient, rtol=1e-8, atol=1e-11 * float(gradient.abs().max())), parameter


@pytest.mark.parametrize("name", CASES)
def test_in_float32_they_differ_by_rounding(name):
    """Relative 1e-5 for losses and 2e-4 of the largest entry for gradients; a latent at the boundary may differ."""
    chosen, p, x, y, moment, widths = case(name, torch.float32)
    reference, selected = dense.losses(chosen, p, x, y, moment, widths)
    fast, codes = sparse.losses(chosen, p, x, y, moment, widths)
    assert codes.counts()[0] == selected.counts()[0] == 0
    assert (codes.dense() > 0).logical_xor(selected.dense() > 0).sum() <= 2
    for term, value in reference.items():
        assert torch.allclose(fast[term], value, rtol=1e-5, atol=1e-6), term
    mine, theirs = gradients(fast["total"], p), gradients(reference["total"], p)
    for parameter, gradient in theirs.items():
        assert (mine[parameter] - gradient).abs().max() <= 2e-4 * gradient.abs().max() + 1e-7, parameter


@pytest.mark.parametrize("name", CASES)
def test_one_token_is_a_batch(name):
    chosen, p, x, y, moment, widths = case(name, tokens=2)
    chosen, moment = replace(chosen, reconstruction="squared"), replace(moment, dead=moment.dead[:0])
    x, y = x[1:], y[1:]
    reference, selected = dense.losses(chosen, p, x, y, moment, widths)
    fast, codes = sparse.losses(chosen, p, x, y, moment, widths)
    assert torch.equal(codes.indices, selected.indices)
    assert codes.values.numel() > 0
    assert torch.allclose(fast["total"], reference["total"], rtol=1e-10)
    mine, theirs = gradients(fast["total"], p), gradients(reference["total"], p)
    for parameter, gradient in theirs.items():
        assert torch.allclose(mine[parameter], gradient, rtol=1e-8, atol=1e-12), parameter


@pytest.mark.parametrize("hint", [None, -1.0, 1e-3, 0.4, 50.0])
@pytest.mark.parametrize("k", [0.4, 5, 150])
def test_batch_topk_does_not_depend_on_the_guess_nor_on_the_blocks(k, hint):
    chosen, p, x, _, moment, widths = case("batch_topk")
    moment = replace(moment, k=k, hint=hint)
    expected = dense.select(chosen, p, x, replace(moment, hint=None), widths)
    found = sparse.select(chosen, p, x, moment, widths)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.offsets, expected.offsets)


def test_a_guess_that_fits_the_first_block_and_no_other_is_made_good():
    chosen, p, x, _, moment, widths = case("batch_topk")
    loud = torch.cat([x[:7] * 10, x[7:] * 0.01])  # the first tokens' scores say nothing about the others'
    found = sparse.select(chosen, p, loud, replace(moment, k=60), widths)
    assert torch.equal(found.indices, dense.select(chosen, p, loud, replace(moment, k=60), widths).indices)


@pytest.mark.parametrize("name", RECIPES)
def test_four_steps_end_at_the_same_weights(name, monkeypatch):
    chosen = RECIPES[name]
    x, y = rows(chosen, 128, d=D)
    schedule, curves, ends = Schedule.for_run(40), [], []
    for faster in (True, False):
        monkeypatch.setattr(sparse, "covers", lambda _, faster=faster: faster)
        monkeypatch.setattr(paths, "DENSEST", 1.0)
        m = Member(cell(chosen, 305, K, rate=1e-3), layout(chosen, D), 10**8, CPU)
        m.initialise(x, y)
        m.tokens_since_fired[::7] = 10**9
        curves.append([float(m.step(x, schedule, step, y)["total"]) for step in range(4)])
        ends.append({n: p.detach().clone() for n, p in m.parameters.items()})
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    for parameter, value in ends[0].items():
        # Adam brings small gradients to one size, rounding included, so single entries may part; most may not.
        near = (value - ends[1][parameter]).abs() < 1e-4
        assert near.float().mean() > 0.98, parameter


class Largest(TorchDispatchMode):
    """The largest number of entries of any floating-point tensor that an operator makes."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.entries = max(self.entries, tensor.numel())
        return out


@pytest.mark.parametrize("name", CASES)
def test_there_is_one_product_of_the_encoders_size_and_no_matrix_of_all_pre_activations(name):
    chosen = CASES[name]
    tokens, d, width = 400, 5, 310
    m = Member(cell(chosen, width, K), layout(chosen, d), 10**9, CPU)
    x, y = rows(chosen, tokens, d=d)
    z = x @ m.encoder.detach().T
    level = z.flatten().kthvalue(int(z.numel() * (1 - 2 / width))).values
    with torch.no_grad():
        for bias in m.parameters.keys() & {"b_enc", "b_gate"}:
            m.parameters[bias] -= level
        if "threshold" in m.parameters:
            m.parameters["threshold"].fill_(1e-3)
    moment = replace(m.moment(), bandwidth=1e-3, sizes=(width,))
    with FlopCounterMode(display=False) as flops, Largest() as largest:
        losses, codes = sparse.losses(chosen, m.parameters, x, x if y is None else y, moment, m.widths)
        losses["total"].backward()
    assert 0 < codes.values.numel() < 0.1 * tokens * width
    once = 2 * tokens * x.shape[1] * width
    skip = 4 * tokens * x.shape[1] * y.shape[1] if chosen.skip else 0
    assert once <= flops.get_total_flops() <= 1.01 * once + skip
    assert largest.entries < tokens * width / 4


def test_where_many_latents_are_active_the_dense_path_runs(monkeypatch):
    x = data(128, D)
    m = Member(cell("relu", 305, K), D, 10**9, CPU)
    with pytest.raises(TooDense):
        sparse.losses(m.config.recipe, m.parameters, x, x, m.moment(), m.widths, densest=paths.DENSEST)
    ran = []
    monkeypatch.setattr(dense, "losses", lambda *a, kept=dense.losses: ran.append("dense") or kept(*a))
    crowded, _ = m.losses(x)
    everywhere, _ = sparse.losses(m.config.recipe, m.parameters, x, x, m.moment(), m.widths)
    assert torch.allclose(crowded["total"], everywhere["total"], rtol=1e-5)
    with torch.no_grad():
        m.b_enc.sub_(1.0)
    m.losses(x)
    assert ran == ["dense"]


def test_a_large_k_is_known_to_be_dense_beforehand(monkeypatch):
    m = Member(cell("topk", 305, 100), D, 10**9, CPU)
    monkeypatch.setattr(entries, "blocks", lambda *_: pytest.fail("no product is needed to see that"))
    with pytest.raises(TooDense):
        sparse.losses(m.config.recipe, m.parameters, data(9, D), data(9, D), m.moment(), m.widths, densest=0.13)


def test_the_graph_of_a_step_can_be_walked_once():
    chosen, p, x, y, moment, widths = case("matryoshka_relu")
    total = sparse.losses(chosen, p, x, y, moment, widths)[0]["total"]
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
