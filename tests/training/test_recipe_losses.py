"""Losses and gradients of every recipe in float64 against the formulas written out, and the fast path against them.

Batches hold what usually goes wrong: dead latents, a token without any active latent, equal tokens.
"""

from dataclasses import replace

import pytest
import torch
from recipe_cases import hard_rows, layout, member, scrambled

from saeworks.training import dense, sparse
from saeworks.training.partitions import Across, Delta
from saeworks.training.penalties import L0, L1, Frequency, Lp, PreAct, TargetL0
from saeworks.training.recipes import RECIPES, Jump, MultiTopK, Recipe, recipe

TOKENS, WIDTH = 24, 32
SET = 16  # latents for the difference of two sources
DEAD = torch.tensor([3, 7, 8, 20])
EQUAL = [4, 5, 9, 13, 14, 30]
SMALL = {"group_fractions": (1 / 8, 1 / 8, 1 / 4, 1 / 2)}
VARIANTS = {
    "l0": recipe("jumprelu", penalties=(L0(),), sparsity="coefficient", grid=(0.3,)),
    "quadratic": recipe("jumprelu", penalties=(TargetL0(form="quadratic"),)),
    "everywhere": recipe(
        "jumprelu", jump=Jump(bandwidth=0.5, everywhere=True), penalties=(TargetL0(), L0(coefficient=0.2))
    ),
    "frequency": recipe("jumprelu", penalties=(TargetL0(), Frequency(cap=0.2, coefficient=0.7))),
    "tanh": replace(recipe("anthropic-jan25"), grid=(0.4,)),
    "dead_pre_act": recipe("jumprelu", penalties=(TargetL0(), PreAct(only_dead=True, coefficient=0.5))),
    "nested_jumprelu": recipe("jumprelu", penalties=(L0(),), sparsity="coefficient", grid=(0.3,), **SMALL),
    "root": recipe("p_anneal", penalties=(Lp(root=True),)),
    "prefix_sum": recipe("matryoshka_batch_topk", prefix_sum=True, reconstruction="squared", **SMALL),
    "norm_of_error": recipe("crosscoder-chat"),
    "norm_of_error_by_k": recipe("crosscoder_batch_topk", reconstruction="norm"),
    "multi": recipe("topk", multi=MultiTopK()),
    "multi_batch": recipe("batch_topk", multi=MultiTopK(factor=2, weight=0.3), norm_weighted=True, constraint="free"),
    "weighted_groups": recipe("groupmax", norm_weighted=True, constraint="free"),
    "delta": recipe("diffing-delta", across=Across(delta=Delta(latents=0.5, k=0.4, weight=0.8))),
    "jumprelu_transcoder": recipe(
        "skip_transcoder", selection="jumprelu", penalties=(L1(),), sparsity="coefficient", grid=(0.1,)
    ),
}
CASES = {**RECIPES, **VARIANTS}


def case(name, seed=0):
    """A member's parameters, rows and moment of the recipe, in float64 and away from where training starts."""
    chosen: Recipe = CASES[name]
    if chosen.group_fractions == RECIPES["matryoshka_batch_topk"].group_fractions:
        chosen = replace(chosen, **SMALL)
    m = member(chosen, width=WIDTH, initialised=False)
    p = scrambled(m, seed)
    x, y = hard_rows(chosen, p, TOKENS, seed)
    moment = replace(m.moment(), dead=DEAD, p=0.6, next_p=0.4, bandwidth=chosen.jump.bandwidth)
    if chosen.selection == "jumprelu" and chosen.jump.bandwidth < 0.1:
        moment = replace(moment, bandwidth=0.4)  # wide enough for some entries of so small a batch
    return chosen, p, x, y, replace(moment, penalty=0.7 * (moment.penalty or 1.0), warm=0.7), m


def norms_by_hand(chosen, W):
    """``[source, latent]``."""
    count = len(layout(chosen).sources or (0,))
    return W.reshape(len(W), count, -1).square().sum(dim=2).sqrt().T


def first_largest(scores, count):
    """Mask of the ``count`` largest of all entries, of equal ones the first."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask.view(-1)[sorted(range(scores.numel()), key=lambda i: (-float(scores.flatten()[i]), i))[:count]] = True
    return mask


def mask_by_hand(chosen, z, W, k):
    """The selected entries: equal scores go to the earlier token, then to the earlier latent."""
    scores = z * norms_by_hand(chosen, W).sum(dim=0) if chosen.norm_weighted else z
    mask = torch.zeros_like(z, dtype=torch.bool)
    if chosen.selection == "batch_topk":
        own = delta_of(chosen).k
        for latents, share in ((slice(0, -SET), 1 - own), (slice(-SET, None), own)) if own else ((slice(None), 1.0),):
            mask[:, latents] = first_largest(scores[:, latents], round(k * share * len(z)))
    elif chosen.selection == "groupmax":
        for row, line in enumerate(scores.reshape(len(z), int(k), -1)):
            for group, values in enumerate(line):
                mask[row, group * len(values) + int(values.argmax())] = True
    else:
        for row, line in enumerate(scores):
            mask[row, sorted(range(len(line)), key=lambda i: -float(line[i]))[: int(k)]] = True
    return mask & (z > 0)


def delta_of(chosen):
    """What the recipe asks of the difference of its sources; nothing, mostly."""
    return chosen.across.delta if chosen.across is not None else Delta(0.0, 0.0, 0.0)


def error_by_hand(chosen, y, y_hat):
    if chosen.reconstruction == "normalized":
        return (y - y_hat).square().sum() / (y - y.mean(dim=0)).square().sum()
    if chosen.reconstruction == "squared":
        return (y - y_hat).square().sum() / len(y)
    parts = (y - y_hat).reshape(len(y), len(layout(chosen).sources or (0,)), -1)
    return parts.square().sum(dim=2).sqrt().mean()


def straight_through(value, *slopes):
    """``value`` with the given derivatives: pairs of a derivative and what it is with respect to."""
    return value.detach() + sum((slope.detach() * (v - v.detach())) for slope, v in slopes)


def penalties_by_hand(chosen, f, z, theta, W, sizes, moment, window):
    """Σ weight · penalty, in the order of the recipe."""
    joint, summed = W.square().sum(dim=1).sqrt(), norms_by_hand(chosen, W).sum(dim=0)
    prefixes = [sum(sizes[: g + 1]) for g in range(len(sizes))]

    def nested(per_latent):
        return sum(per_latent[:, :m].sum(dim=1).mean() for m in prefixes) / len(prefixes)

    if theta is not None:
        slopes = [(-window / moment.bandwidth, theta)]
        slopes += [(window / moment.bandwidth, z)] if chosen.jump.everywhere else []
        on = straight_through((z > theta).double(), *slopes)
    total = 0.0
    for penalty in chosen.penalties:
        weight = moment.penalty if penalty.coefficient is None else penalty.coefficient * moment.warm
        if penalty.kind == "pre_act":  # is not warmed up: it revives latents and makes nothing sparser
            weight = penalty.coefficient
        if penalty.kind == "l1":
            value = nested(f * {"none": torch.ones_like(joint), "sum": summed, "joint": joint}[penalty.norms])
        elif penalty.kind == "lp":
            powers = (f + 1e-6) ** 0.6 - 1e-6**0.6
            value = (powers.sum(dim=1) ** (1 / 0.6)).mean() if penalty.root else nested(powers)
        elif penalty.kind == "l0":
            value = nested(on)
        elif penalty.kind == "l0_target":
            l0 = on.sum(dim=1).mean()
            value = (l0 / 4 - 1) ** 2 if penalty.form == "relative" else 2 / 4 * (l0 - 4) ** 2
        elif penalty.kind == "tanh":
            value = nested(torch.tanh(4 * f * joint))
        elif penalty.kind == "pre_act":
            missing = (theta - z).clamp_min(0) * joint
            value = (missing[:, DEAD] if penalty.only_dead else missing).sum(dim=1).mean()
        else:
            value = (on.mean(dim=0) - penalty.cap).clamp_min(0).sum()
        total = total + weight * value
    return total


def positive(z):
    """``z`` where it is above 0, with the gradient 0 at 0 itself."""
    return z * (z > 0)


def loss_by_hand(chosen, p, x, y, moment, mask=None):
    """``mask``: the selected entries, where equals could fall either way."""
    W, b_dec = p["decoder"], p["b_dec"]
    u = (x - b_dec if chosen.pre_bias else x) @ p["encoder"].T
    z, theta, window, extra = u + p["b_enc"], None, None, 0.0
    skip = x @ p["W_skip"] if chosen.skip else 0.0
    if chosen.selection == "gated":
        gate, z = u + p["b_gate"], torch.exp(p["r_mag"]) * u + p["b_enc"]
        f = (gate > 0) * positive(z)
        extra = error_by_hand(chosen, y, positive(gate) @ W.detach() + b_dec.detach())
        penalised = positive(gate)
    elif chosen.selection == "jumprelu":
        theta = p["threshold"]
        window = ((z - theta).abs() < moment.bandwidth / 2).double()
        slopes = [((z > theta).double(), z), (-theta / moment.bandwidth * window, theta)]
        slopes += [(theta / moment.bandwidth * window, z)] if chosen.jump.everywhere else []
        f = penalised = straight_through(z * (z > theta), *slopes)
    elif chosen.selection == "relu":
        f = penalised = positive(z)
    else:
        mask = mask_by_hand(chosen, z.detach(), W.detach(), moment.k) if mask is None else mask
        f = penalised = z * mask
        if chosen.multi is not None:
            more = z * mask_by_hand(chosen, z.detach(), W.detach(), chosen.multi.factor * moment.k)
            extra = chosen.multi.weight * error_by_hand(chosen, y, more @ W + b_dec + skip)
    errors, prefix = [], 0
    for size in moment.sizes:
        prefix += size
        errors.append(error_by_hand(chosen, y, f[:, :prefix] @ W[:prefix] + b_dec + skip))
    total = sum(errors) / (1 if chosen.prefix_sum else len(errors)) + extra
    total = total + penalties_by_hand(chosen, penalised, z, theta, W, moment.sizes, moment, window)
    if delta_of(chosen).weight:
        d = y.shape[1] // 2
        differs = f[:, -SET:] @ (W[-SET:, d:] - W[-SET:, :d]) - (y[:, d:] - y[:, :d])
        total = total + delta_of(chosen).weight * differs.square().sum(dim=1).mean()
    if chosen.aux_k is not None:
        residual = (y - f @ W - b_dec - skip).detach()
        r = positive(z[:, DEAD])
        best = torch.zeros_like(r)
        scores = r * norms_by_hand(chosen, W)[:, DEAD].sum(dim=0) if chosen.norm_weighted else r
        for row in range(len(r)):
            best[row, scores[row].detach().argsort(descending=True)[: x.shape[1] // 2]] = 1
        variance = (residual - residual.mean(dim=0)).square().sum()
        aux = (residual - (r * best) @ W[DEAD]).square().sum() / variance
        units = (y - y.mean(dim=0)).square().sum() / len(y) if chosen.reconstruction == "squared" else 1.0
        total = total + aux * units / 32
    return total


def gradients(loss, p):
    grads = torch.autograd.grad(loss, list(p.values()), allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(p.items(), grads, strict=True)}


def case_with_ties(name):
    """Six latents, more than k, read one direction, and one token lies far out on it: a choice among equals.

    All that makes a pre-activation is a multiple of 1/64, so that no order of sums can part those that are equal.
    """
    chosen, p, x, y, moment, m = case(name, seed=1)
    with torch.no_grad():
        towards = x[5] - p["b_dec"] if chosen.pre_bias else x[5]
        for parameter in p.keys() & {"encoder", "b_enc", "b_gate", "r_mag", "threshold"}:
            p[parameter][EQUAL] = p[parameter][EQUAL[0]].clone()
        p["encoder"][EQUAL] = 2 * towards / towards.norm()
        for tensor in (x, p["encoder"], p["b_enc"], p["b_dec"]):
            tensor.copy_((64 * tensor).round() / 64)
        if chosen.norm_weighted:
            p["decoder"][EQUAL] = p["decoder"][EQUAL[0]].clone()
    return chosen, p, x, y, moment, m


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ties", [False, True])
def test_loss_and_gradients_are_the_written_formula(name, ties):
    chosen, p, x, y, moment, m = case_with_ties(name) if ties else case(name)
    for path in (dense, sparse) if sparse.covers(chosen) else (dense,):
        losses, codes = path.losses(chosen, p, x, y, moment, m.widths)
        mask = codes.dense() > 0
        if ties and chosen.selection == "topk":
            check_topk(chosen, p, x, mask, moment.k)
        expected = loss_by_hand(chosen, p, x, y, moment, mask if ties and chosen.selection == "topk" else None)
        assert codes.counts()[0] == 0
        assert codes.counts().sum() > 3 * TOKENS
        assert torch.allclose(losses["total"], expected, rtol=1e-11)
        mine, theirs = gradients(losses["total"], p), gradients(expected, p)
        for parameter, gradient in mine.items():
            assert gradient.abs().max() > 0, parameter
            assert torch.allclose(gradient, theirs[parameter], rtol=1e-9, atol=1e-12), parameter


def check_topk(chosen, p, x, mask, k):
    """Any k of the largest are a right selection; which of several equal ones, the device's ``topk`` decides."""
    z = ((x - p["b_dec"] if chosen.pre_bias else x) @ p["encoder"].T + p["b_enc"]).detach()
    assert mask.sum(dim=1).tolist() == (z > 0).sum(dim=1).clamp_max(k).tolist()
    assert all(
        float(line[on].min()) >= float(line[~on].max()) - 1e-9 for line, on in zip(z, mask, strict=True) if on.any()
    )
    assert (mask[:, EQUAL].any(dim=1) & ~mask[:, EQUAL].all(dim=1)).any(), "no token has to choose among equals"


@pytest.mark.parametrize("name", CASES)
def test_in_float32_the_loss_is_that_of_float64(name):
    chosen, p, x, y, moment, m = case(name)
    exact, codes = dense.losses(chosen, p, x, y, moment, m.widths)
    single = {n: t.detach().float() for n, t in p.items()}
    rounded, again = dense.losses(chosen, single, x.float(), y.float(), moment, m.widths)
    assert torch.allclose(rounded["total"].double(), exact["total"], rtol=1e-4)
    assert (codes.dense() > 0).logical_xor(again.dense() > 0).sum() <= 2  # ties of equal tokens may fall otherwise


@pytest.mark.parametrize("name", ["topk", "gated", "crosscoder_batch_topk", "p_anneal"])
def test_without_any_active_latent_losses_and_gradients_are_finite(name):
    chosen, p, x, y, moment, m = case(name)
    with torch.no_grad():
        p["b_enc"] -= 100
    for path in (dense, sparse) if sparse.covers(chosen) else (dense,):
        losses, codes = path.losses(chosen, p, x, y, moment, m.widths)
        assert codes.values.numel() == 0
        assert bool(losses["total"].isfinite())
        assert all(bool(g.isfinite().all()) for g in gradients(losses["total"], p).values())
