"""The pseudo-derivatives of JumpReLU against their table, on a grid around the threshold."""

import pytest
import torch
from recipe_cases import member, rows

from saeworks.training.recipes import Jump
from saeworks.training.schedules import Schedule, Span, Timing
from saeworks.training.straight_through import in_window, jump, step

THETA, EPSILON = 0.8, 0.2
Z = torch.linspace(0.5, 1.1, 61, dtype=torch.float64) + 1e-4  # no entry lies on an edge of the window
INSIDE = ((Z - THETA).abs() < EPSILON / 2).double()


def slopes(function, everywhere):
    """d/dz and d/dθ of every single entry."""
    z, theta = Z.clone().requires_grad_(), torch.tensor([THETA], dtype=torch.float64, requires_grad=True)
    by_entry = []
    for i in range(len(Z)):
        out = function(z[:, None], theta, EPSILON, everywhere)[i, 0]
        dz, dt = torch.autograd.grad(out, (z, theta), allow_unused=True)
        by_entry.append((0.0 if dz is None else float(dz[i]), float(dt)))
    dz, dt = zip(*by_entry, strict=True)
    return torch.tensor(dz, dtype=torch.float64), torch.tensor(dt, dtype=torch.float64)


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_gradients_are_those_of_the_table(everywhere):
    dz, dt = slopes(jump, everywhere)
    assert torch.allclose(dt, -THETA / EPSILON * INSIDE)
    assert torch.allclose(dz, (Z > THETA).double() + (THETA / EPSILON * INSIDE if everywhere else 0.0))
    dz, dt = slopes(step, everywhere)
    assert torch.allclose(dt, -INSIDE / EPSILON)
    assert torch.allclose(dz, INSIDE / EPSILON if everywhere else torch.zeros_like(Z))


def test_entries_just_below_the_threshold_pull_as_much_as_those_just_above():
    _, dt = slopes(step, False)
    below, above = dt[(Z < THETA) & (INSIDE > 0)], dt[(Z > THETA) & (INSIDE > 0)]
    assert len(below) == len(above) == 10
    assert float(below.sum()) == pytest.approx(float(above.sum()))
    assert float(below.sum()) < 0


def test_a_wider_window_counts_more_entries_with_less_weight():
    draw = torch.Generator().manual_seed(0)
    z = torch.rand(20_000, 1, generator=draw, dtype=torch.float64) * 2
    found = []
    for epsilon in (0.05, 0.2):
        theta = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        step(z, theta, epsilon).sum(dim=1).mean().backward()
        found.append(float(theta.grad))
        # The density of z at the threshold is 1/2, so that many lie in a window of this width …
        assert float(in_window(z, theta, epsilon)) == pytest.approx(epsilon / 2, rel=0.1)
    # … and the gradient estimates minus that density whatever the width.
    assert found == pytest.approx([-0.5, -0.5], rel=0.1)


def test_nothing_negative_passes_even_if_a_threshold_is():
    z = torch.tensor([[-0.5, -0.1, 0.2]], requires_grad=True)
    out = jump(z, torch.tensor([-1.0, -1.0, -1.0]), 0.1)
    assert out.tolist() == [[0.0, 0.0, pytest.approx(0.2)]]
    out.sum().backward()
    assert z.grad.tolist() == [[0.0, 0.0, 1.0]]


def test_a_threshold_learns_in_float32_whatever_the_activations_are_stored_in():
    """Steps far below the resolution of bfloat16 at the threshold add up."""
    m = member("jumprelu", rate=1e-5, jump=Jump(bandwidth=0.4, threshold=0.53125))
    x = rows(m.config.recipe)[0].bfloat16()
    before = m.parameters["threshold"].detach().clone()
    schedule = Schedule.for_run(100, Timing(warm_up=Span(0, 0.0), decay=0.0, sparsity_warm_up=Span(0, 0.0)))
    for number in range(100):
        m.step(x.float(), schedule, number)
    after = m.parameters["threshold"].detach()
    assert after.dtype == m.optimizer.state[m.parameters["threshold"]]["exp_avg"].dtype == torch.float32
    moved = (after - before).abs()
    assert 3e-4 < float(moved.max()) < 1.2e-3
    assert torch.equal(after.bfloat16(), before.bfloat16())
    assert m.export(1.0, {}).threshold.dtype == torch.float32
    restored = member("jumprelu", jump=m.config.recipe.jump)
    restored.load_state_dict(m.state_dict())
    assert torch.equal(restored.parameters["threshold"].detach(), after)
