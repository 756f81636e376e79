"""The loss of every named recipe and preset as its source writes it, one formula each, and its gradients, in float64.

Nothing here reads a recipe's fields: a recipe that was composed wrongly differs from its formula.
"""

from dataclasses import replace

import pytest
import torch
from recipe_cases import cell, hard_rows, layout, member, rows, scrambled
from torch.nn.functional import relu

from saeworks.training import dense, sparse
from saeworks.training.catalogue import preset_recipes
from saeworks.training.member import Member
from saeworks.training.presets import PRESETS
from saeworks.training.recipes import RECIPES, recipe

N, D, K = 32, 12, 4
DEAD = [3, 7, 8, 20]
SIZES = (1, 2, 4, 8, 17)  # 1/32, 1/16, 1/8, 1/4 and the rest of 32
EPSILON = 0.3  # window of the jumps: wide enough for some entries of so small a batch


def unpack(p, *names):
    return [p[name] for name in ("encoder", "b_enc", "decoder", "b_dec", *names)]


def squared(y, y_hat):
    return (y - y_hat).square().sum(dim=1).mean()


def over_variance(y, y_hat):
    return (y - y_hat).square().sum() / (y - y.mean(dim=0)).square().sum()


def size(y):
    return (y - y.mean(dim=0)).square().sum(dim=1).mean()


def largest(z, k):
    """The k largest positive entries of every row."""
    out = torch.zeros_like(z)
    for row in range(len(z)):
        for i in z[row].detach().argsort(descending=True, stable=True)[:k]:
            out[row, i] = 1
    return z * out * (z > 0)


def largest_of_batch(z, k, scores=None):
    scores = z if scores is None else scores
    last = scores.detach().flatten().sort(descending=True).values[round(k * len(z)) - 1]
    return z * (scores >= last) * (z > 0)


def revival(p, z, residual, k=D // 2, norms=1.0):
    """What dead latents leave of the residual."""
    residual, r = residual.detach(), relu(z[:, DEAD])
    on = largest(r * norms, k) > 0
    return over_variance_of_residual(residual, (r * on) @ p["decoder"][DEAD])


def over_variance_of_residual(residual, guess):
    return (residual - guess).square().sum() / (residual - residual.mean(dim=0)).square().sum()


def topk(p, x, y, pre_bias=True, skip=False, aux=1 / 32, k_aux=D // 2):
    E, b, W, c = unpack(p)
    z = (x - c if pre_bias else x) @ E.T + b
    y_hat = largest(z, K) @ W + c + (x @ p["W_skip"] if skip else 0)
    return over_variance(y, y_hat) + aux * revival(p, z, y - y_hat, k_aux)


def batch_topk(p, x, y, sizes=(N,), reduce="mean", squares=False, aux=1 / 32, k_aux=D // 2):
    E, b, W, c = unpack(p)
    z = (x - c) @ E.T + b
    f, prefix, errors = largest_of_batch(z, K), 0, []
    for m in sizes:
        prefix += m
        errors.append((squared if squares else over_variance)(y, f[:, :prefix] @ W[:prefix] + c))
    total = sum(errors) if reduce == "sum" else sum(errors) / len(errors)
    return total + aux * (size(y) if squares else 1) * revival(p, z, y - f @ W - c, k_aux)


def penalised(p, x, y, weight, norms=lambda W: torch.ones(N), pre_bias=True):
    E, b, W, c = unpack(p)
    f = relu((x - c if pre_bias else x) @ E.T + b)
    return squared(y, f @ W + c) + weight * (f * norms(W)).sum(dim=1).mean()


def rows_of(W):
    return W.norm(dim=1)


def rows_of_both(W):
    return W[:, :D].norm(dim=1) + W[:, D:].norm(dim=1)


def gated(p, x, y, weight):
    E, b_mag, W, c, b_gate, r = unpack(p, "b_gate", "r_mag")
    u = (x - c) @ E.T
    g, magnitude = relu(u + b_gate), relu(torch.exp(r) * u + b_mag)
    return (
        squared(y, ((u + b_gate > 0) * magnitude) @ W + c)
        + weight * g.sum(dim=1).mean()
        + squared(y, g @ W.detach() + c.detach())
    )


def nested_relu(p, x, y, weight, sizes):
    E, b, W, c = unpack(p)
    f, prefix, total = relu(x @ E.T + b), 0, 0.0
    for m in sizes:
        prefix += m
        part = f[:, :prefix]
        total = total + squared(y, part @ W[:prefix] + c) + weight * (part * rows_of(W)[:prefix]).sum(dim=1).mean()
    return total / len(sizes)


def groupmax(p, x, y):
    E, b, W, c = unpack(p)
    z = (x - c) @ E.T + b
    blocks = z.view(len(z), K, N // K)
    f = torch.zeros_like(blocks).scatter(2, blocks.argmax(dim=2, keepdim=True), 1).view_as(z) * relu(z)
    return over_variance(y, f @ W + c) + revival(p, z, y - f @ W - c) / 32


def weighted_batch_topk(p, x, y):
    E, b, W, c = unpack(p)
    z, norms = x @ E.T + b, rows_of_both(W).detach()
    f = largest_of_batch(z, K, z * norms)
    return over_variance(y, f @ W + c) + revival(p, z, y - f @ W - c, k=D, norms=norms[DEAD]) / 32


def norm_of_error(p, x, y, weight):
    E, b, W, c = unpack(p)
    f = relu(x @ E.T + b)
    error = y - f @ W - c
    mean = (error[:, :D].norm(dim=1).mean() + error[:, D:].norm(dim=1).mean()) / 2
    return mean + weight * (f * rows_of_both(W)).sum(dim=1).mean()


CASES = {
    "topk": topk,
    "batch_topk": batch_topk,
    "matryoshka_batch_topk": lambda *a: batch_topk(*a, sizes=SIZES),
    "relu": lambda *a: penalised(*a, 0.03),
    "relu_april": lambda *a: penalised(*a, 0.03, rows_of, pre_bias=False),
    "gated": lambda *a: gated(*a, 0.04),
    "p_anneal": lambda *a: penalised(*a, 0.015),  # as it begins, with p = 1
    "matryoshka_relu": lambda *a: nested_relu(*a, 0.02, SIZES),
    "groupmax": groupmax,
    "transcoder": lambda *a: topk(*a, pre_bias=False),
    "skip_transcoder": lambda *a: topk(*a, pre_bias=False, skip=True),
    "crosscoder_l1": lambda *a: penalised(*a, 0.03, rows_of_both, pre_bias=False),
    "crosscoder_batch_topk": weighted_batch_topk,
    "saebench-relu": lambda *a: penalised(*a, 0.03),
    "saebench-relu_april": lambda *a: penalised(*a, 0.03, rows_of),
    "saebench-gated": lambda *a: gated(*a, 0.04),
    "saebench-p_anneal": lambda *a: penalised(*a, 0.015),
    "saebench-batch_topk": lambda *a: batch_topk(*a, squares=True),
    # The suite's own numbers times five: a mean over five prefixes that it divides by five once more.
    "saebench-matryoshka_batch_topk": lambda *a: batch_topk(*a, sizes=SIZES, squares=True, aux=5 / 32),
    "batchtopk-gpt2": lambda *a: batch_topk(*a, k_aux=len(DEAD)),
    "matryoshka-gemma2": lambda *a: batch_topk(*a, sizes=SIZES, reduce="sum", squares=True),
    "anthropic-april24": lambda *a: penalised(*a, 5.0, rows_of, pre_bias=False),
    "openai-topk": lambda *a: topk(*a, k_aux=len(DEAD)),
    "sparsify": lambda *a: topk(*a, aux=0.0),
    "crosscoder-chat": lambda *a: norm_of_error(*a, 0.041),
}
# Recipes with jumps have gradients of their own, and sampled prefixes none that are fixed: further down.
APART = {"jumprelu", "crosscoder_jumprelu", "saebench-jumprelu", "gemma-scope", "anthropic-jan25"}
# Those of the preset for diffing are written out in test_crosscoders.py.
APART |= {chosen.name for chosen in PRESETS["diffing"].recipes}
APART |= {"matryoshka_relu_sampled", "matryoshka_batch_topk_sampled", "saebench-topk"}


def test_no_recipe_is_without_its_formula():
    assert set(CASES) | APART == {*RECIPES, *preset_recipes()}


def prepared(name, seed=0, tokens=24):
    """Recipe, parameters, rows, targets, moment and widths, with dead latents, an empty token and two equal ones."""
    m = member(recipe(name), width=N, k=K, initialised=False)
    p = scrambled(m, seed)
    x, y = hard_rows(m.config.recipe, p, tokens, seed)
    moment = replace(m.moment(), dead=torch.tensor(DEAD), bandwidth=EPSILON)
    return m.config.recipe, p, x, y, moment, m.widths


def gradients(loss, p):
    found = torch.autograd.grad(loss, list(p.values()), allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(p.items(), found, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_and_its_gradients_are_those_of_the_source(name):
    chosen, p, x, y, moment, widths = prepared(name)
    expected = CASES[name](p, x, y)
    theirs = gradients(expected, p)
    for path in (dense, sparse) if sparse.covers(chosen) else (dense,):
        losses, codes = path.losses(chosen, p, x, y, moment, widths)
        assert codes.counts()[0] == 0
        assert torch.allclose(losses["total"], expected, rtol=1e-10)
        mine = gradients(losses["total"], p)
        for parameter, gradient in mine.items():
            assert torch.allclose(gradient, theirs[parameter], rtol=1e-8, atol=1e-12), parameter


def test_topk_of_the_suite_is_topk_of_squared_errors():
    chosen, p, x, y, moment, widths = prepared("saebench-topk")
    losses, _ = dense.losses(chosen, p, x, y, moment, widths)
    assert torch.allclose(losses["total"], topk(p, x, y) * size(y), rtol=1e-10)


@pytest.mark.parametrize("name", ["matryoshka_relu_sampled", "matryoshka_batch_topk_sampled"])
def test_sampled_prefixes_are_a_mean_over_those_of_the_step(name):
    chosen, p, x, y, moment, widths = prepared(name)
    assert len(moment.sizes) == 10
    losses, _ = dense.losses(chosen, p, x, y, moment, widths)
    if name == "matryoshka_relu_sampled":
        expected = nested_relu(p, x, y, 0.02, moment.sizes)
    else:
        expected = batch_topk(p, x, y, moment.sizes)
    assert torch.allclose(losses["total"], expected, rtol=1e-10)


def jumps(name):
    """Loss and closed-form gradients of the threshold and the encoder's bias (arXiv 2407.14435, equations 11, 12)."""
    chosen, p, x, y, moment, widths = prepared(name)
    W, c, theta = p["decoder"].detach(), p["b_dec"].detach(), p["threshold"].detach()
    pre_bias = name in ("jumprelu", "gemma-scope")
    z = ((x - c if pre_bias else x) @ p["encoder"].detach().T) + p["b_enc"].detach()
    on, near = (z > theta).double(), ((z - theta).abs() < EPSILON / 2).double()
    B, l0 = len(x), on.sum(dim=1).mean()
    error = (z * on) @ W + c - y
    loss, d_f = error.square().sum(dim=1).mean(), 2 * error @ W.T / B  # and the gradient of every latent
    if name in ("jumprelu", "crosscoder_jumprelu", "saebench-jumprelu"):
        loss = loss + (l0 / K - 1) ** 2
        d_on = 2 * (l0 / K - 1) / K / B
    elif name == "gemma-scope":
        loss, d_on = loss + 0.005 * l0, 0.005 / B
    else:
        norms = W.norm(dim=1)
        loss = loss + 20 * torch.tanh(4 * z * on * norms).sum(dim=1).mean()
        d_f = d_f + 20 * 4 * norms / torch.cosh(4 * z * on * norms).square() / B
        below = relu(theta - z) * norms
        loss, d_on = loss + 3e-6 * below.sum(dim=1).mean(), 0.0
    d_theta = -(near * (d_f * theta + d_on)).sum(dim=0) / EPSILON
    d_z = d_f * on
    if name == "anthropic-jan25":
        pulled = 3e-6 * norms * (z < theta) / B
        d_theta = d_theta + pulled.sum(dim=0)
        d_z = d_z + near * d_f * theta / EPSILON - pulled  # the jump sends its gradient everywhere
    losses, _ = dense.losses(chosen, p, x, y, moment, widths)
    return losses, gradients(losses["total"], p), loss, {"threshold": d_theta, "b_enc": d_z.sum(dim=0)}


@pytest.mark.parametrize(
    "name", ["jumprelu", "crosscoder_jumprelu", "saebench-jumprelu", "gemma-scope", "anthropic-jan25"]
)
def test_jumps_have_the_gradients_of_the_source(name):
    losses, mine, loss, theirs = jumps(name)
    assert torch.allclose(losses["total"], loss, rtol=1e-10)
    for parameter, gradient in theirs.items():
        assert gradient.abs().max() > 0, parameter
        assert torch.allclose(mine[parameter], gradient, rtol=1e-8, atol=1e-12), parameter
    assert float(losses["in_window"]) > 0


def test_tokens_are_operated_on_before_anything_else_sees_them():
    m = Member(cell(recipe("openai-topk"), N, K), layout(recipe("openai-topk")), 10**9, torch.device("cpu"))
    x = 5 * rows(m.config.recipe, 64)[0] + 3
    normed = (x - x.mean(dim=1, keepdim=True)) / (x.std(dim=1, keepdim=True) + 1e-5)
    got = m.losses(x)[0]["total"]
    assert torch.allclose(got, topk({**m.parameters}, normed, normed, aux=0.0), rtol=1e-5)
