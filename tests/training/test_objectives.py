"""Losses and gradients in float64 against the formulas written out, dense and one prefix at a time."""

import pytest
import torch

from saeworks.dictionaries.kernels.selection import select_batch_topk
from saeworks.dictionaries.kernels.sparse import encode_selected
from saeworks.training.objectives import aux_k_loss, prefix_reconstructions, reconstruction_errors

TOKENS, WIDTH, D, SIZES = 13, 16, 6, (2, 4, 10)


def parameters(seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"encoder": (WIDTH, D), "b_enc": (WIDTH,), "b_dec": (D,), "decoder": (WIDTH, D)}
    x = torch.randn(TOKENS, D, generator=g, dtype=torch.float64)
    return x, {n: torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for n, s in shapes.items()}


def copy(p):
    return {n: t.detach().clone().requires_grad_() for n, t in p.items()}


def pre_activations(x, p):
    return (x - p["b_dec"]) @ p["encoder"].T + p["b_enc"]


def naive_errors(x, p, mask, sizes):
    f = pre_activations(x, p) * mask
    errors, prefix = [], 0
    for size in sizes:
        prefix += size
        x_hat = f[:, :prefix] @ p["decoder"][:prefix] + p["b_dec"]
        errors.append((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
    return torch.stack(errors)


@pytest.mark.parametrize("sizes", [(WIDTH,), SIZES])
def test_nested_errors_and_gradients_equal_one_decode_per_prefix(sizes):
    x, p = parameters()
    q = copy(p)
    with torch.no_grad():
        codes = select_batch_topk(pre_activations(x, p), 3)
    codes = encode_selected(x, p["encoder"], p["b_enc"], p["b_dec"], codes, pre_bias=True)
    errors = reconstruction_errors(x, prefix_reconstructions(codes, p["decoder"], p["b_dec"], sizes))
    expected = naive_errors(x, q, (codes.dense() != 0).double().detach(), sizes)
    assert torch.allclose(errors, expected, rtol=1e-12)
    errors.mean().backward()
    expected.mean().backward()
    for name in p:
        assert torch.allclose(p[name].grad, q[name].grad, rtol=1e-9, atol=1e-12), name


def test_predicting_the_mean_has_the_error_one():
    x, p = parameters()
    codes = select_batch_topk(torch.full((TOKENS, WIDTH), -1.0, dtype=torch.float64), 3)
    assert codes.values.numel() == 0
    errors = reconstruction_errors(x, prefix_reconstructions(codes, p["decoder"], x.mean(0), SIZES))
    assert torch.allclose(errors, torch.ones(3, dtype=torch.float64))


def aux(x, p, dead, k, residual=None, b_dec=None):
    residual = x * 0.5 if residual is None else residual
    b_dec = p["b_dec"] if b_dec is None else b_dec
    return aux_k_loss(x, residual, dead, p["encoder"], p["b_enc"], b_dec, p["decoder"], k)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_aux_k_equals_the_dense_formula_and_touches_only_dead_latents(k):
    x, p = parameters()
    q = copy(p)
    dead = torch.tensor([1, 4, 5, 11, 15])
    loss = aux(x, p, dead, k)
    r = pre_activations(x, q).relu()
    masked = torch.full_like(r, -torch.inf)
    masked[:, dead] = r[:, dead]
    values, indices = masked.topk(k, dim=1)
    e_hat = torch.zeros_like(r).scatter(1, indices, values) @ q["decoder"]
    e = x * 0.5
    expected = (e - e_hat).square().sum() / (e - e.mean(0)).square().sum()
    assert torch.allclose(loss, expected, rtol=1e-12)
    loss.backward()
    expected.backward()
    alive = torch.ones(WIDTH, dtype=torch.bool)
    alive[dead] = False
    for name in ("encoder", "b_enc", "decoder"):
        gradient = p[name].grad.to_dense()  # of the matrices, it consists of the dead rows alone
        assert torch.allclose(gradient, q[name].grad, rtol=1e-9, atol=1e-12), name
        assert gradient[alive].abs().max() == 0
        assert gradient[dead].abs().max() > 0


def test_aux_k_gives_no_gradient_to_the_residual_and_does_not_depend_on_scale():
    x, p = parameters()
    dead = torch.tensor([0, 3, 7])
    residual = (x * 0.3).requires_grad_()
    loss = aux(x, p, dead, 2, residual)
    loss.backward()
    assert residual.grad is None
    scaled = {n: t.detach() * (10.0 if n.startswith("b_") else 1.0) for n, t in p.items()}
    assert torch.allclose(aux(10 * x, scaled, dead, 2, 10 * residual), loss, rtol=1e-12)
