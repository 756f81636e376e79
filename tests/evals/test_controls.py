"""Controls order as they must: identity and PCA above, random and permuted below."""

import pytest
import torch

from saeworks.errors import InputError
from saeworks.evals import controls
from saeworks.evals.shared.metrics import explained_variance


@pytest.fixture
def x():
    g = torch.Generator().manual_seed(0)
    return torch.randn(400, 16, generator=g) * torch.linspace(0.1, 3, 16) + 1.0


def test_full_pca_rebuilds_and_a_part_keeps_the_largest_variance(x):
    full, part = controls.pca(x), controls.pca(x, 4)
    assert torch.allclose(full.decode(full.encode(x)), x, atol=1e-4)
    variances = torch.linalg.eigvalsh(torch.cov(x.T.double())).flip(0)
    expected = float(variances[:4].sum() / variances.sum())
    assert explained_variance(x, part.decode(part.encode(x))) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match="components"):
        controls.pca(x, 17)


def test_random_directions_keep_k_latents_and_explain_something_but_little(x):
    control = controls.random_directions(x, 64, 4)
    f = control.encode(x)
    assert int((f > 0).sum(-1).max()) <= 4
    assert torch.allclose(control.W_dec.norm(dim=-1), torch.ones(64), atol=1e-5)
    value = explained_variance(x, control.decode(f))
    assert 0 < value < explained_variance(x, controls.pca(x, 8).decode(controls.pca(x, 8).encode(x)))


def test_permuting_the_decoder_keeps_codes_and_ruins_the_reconstruction(x):
    good = controls.random_directions(x, 64, 4)
    bad = controls.permuted_decoder(good)
    assert torch.equal(good.encode(x), bad.encode(x))
    assert explained_variance(x, bad(x)) < explained_variance(x, good(x))
    assert torch.equal(good.W_dec.sort(0).values, bad.W_dec.sort(0).values)
