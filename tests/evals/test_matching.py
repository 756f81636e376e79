"""Latents against concepts: the sorted-pairs arithmetic against dense brute force."""

import pytest
import torch

from saeworks.evals.interpretation.matching import hierarchy_table, incidence, joint_counts, match_concepts, sort_events
from saeworks.evals.probes.logistic import auc


@pytest.fixture
def case():
    g = torch.Generator().manual_seed(0)
    tokens, width, concepts = 80, 10, 4
    codes = torch.relu(torch.randn(tokens, width, generator=g))
    codes = (codes * 4).round() / 4  # ties on purpose
    codes[:, 9] = 0  # never fires
    membership = torch.rand(tokens, concepts, generator=g) < 0.3
    codes[:, 0] += 2.0 * membership[:, 2]
    t, i = codes.nonzero().unbind(1)
    events = sort_events(codes[t, i], i, t, width, tokens)
    mt, mc = membership.nonzero().unbind(1)
    return codes, membership, events, incidence(mt, mc, concepts, tokens)


def test_joint_counts_are_a_matrix_product(case):
    codes, membership, events, members = case
    expected = membership.double().T @ (codes > 0).double()
    assert torch.equal(joint_counts(events, members, block=7), expected)
    weighted = membership.double().T @ codes.double()
    assert torch.allclose(joint_counts(events, members, weighted=True), weighted)


def test_best_concept_threshold_and_auc_agree_with_brute_force(case):
    codes, membership, events, members = case
    match = match_concepts(events, members, joint_counts(events, members), candidates=4)
    assert int(match.concept[9]) == -1
    assert int(match.concept[0]) == 2
    for latent in range(9):
        best = 0.0
        for concept in range(4):
            truth = membership[:, concept]
            for threshold in codes[codes[:, latent] > 0, latent].unique():
                fires = codes[:, latent] >= threshold
                best = max(best, 2 * int((fires & truth).sum()) / int(fires.sum() + truth.sum()))
        assert float(match.f1[latent]) == pytest.approx(best)
        truth = membership[:, match.concept[latent]]
        fires = codes[:, latent] >= match.threshold[latent]
        assert float(match.precision[latent]) == pytest.approx(int((fires & truth).sum()) / int(fires.sum()))
        assert float(match.recall[latent]) == pytest.approx(int((fires & truth).sum()) / int(truth.sum()))
        fires = codes[:, latent] > 0
        above_zero = 2 * int((fires & truth).sum()) / int(fires.sum() + truth.sum())
        assert float(match.f1_above_zero[latent]) == pytest.approx(above_zero)


def test_auc_without_ties_is_the_rank_statistic():
    g = torch.Generator().manual_seed(3)
    codes = torch.relu(torch.randn(60, 3, generator=g))
    truth = torch.rand(60, generator=g) < 0.4
    t, i = codes.nonzero().unbind(1)
    members = incidence(truth.nonzero().squeeze(1), torch.zeros(int(truth.sum()), dtype=torch.int64), 1, 60)
    events = sort_events(codes[t, i], i, t, 3, 60)
    match = match_concepts(events, members, joint_counts(events, members))
    for latent in range(3):
        assert float(match.auc[latent]) == pytest.approx(auc(codes[:, latent], truth.double()))


def test_hierarchy_shows_the_absorbed_child_as_a_hole():
    names = ["taxonomy", "taxonomy/bird", "taxonomy/fish", "taxonomy/mammal"]
    counts = torch.tensor([30.0, 10, 10, 10])
    # Latent 0 detects the parent but not fish; latent 1 fires on fish alone; latent 2 is noise.
    joint = torch.tensor([[20.0, 10, 1], [10, 0, 1], [0, 10, 0], [10, 0, 0]], dtype=torch.float64)
    table = hierarchy_table(names, joint, torch.tensor([20.0, 10, 9]), counts)
    assert [row["parent"] for row in table] == ["taxonomy"]
    row = table[0]
    assert row["latent"] == 0
    assert row["f1"] == pytest.approx(0.8)
    assert row["latents"] == 2
    holes = {c["child"]: (c["hole"], c["absorbed"], c["own_latent"]) for c in row["children"]}
    assert holes["taxonomy/fish"] == (True, True, 1)
    assert holes["taxonomy/bird"][:2] == (False, False)
