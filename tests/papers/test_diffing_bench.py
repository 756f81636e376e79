"""The bench of crosscoders on known pairs, in short runs: the null pair, the truth that is counted, the targets."""

import pytest
import torch

from saeworks.diffing import latent_scaling
from saeworks.errors import InputError
from saeworks.papers.diffing_bench import CONFIGURATIONS, bench, explained_variances
from saeworks.papers.diffing_targets import Measured, measure, targets
from saeworks.training.cells import check_recipe
from saeworks.world.synthetic.paired import PairedFeatures

SMALL = {"shared": 12, "base_only": 3, "chat_only": 3, "weak_in_base": 0, "weak_in_chat": 0, "decoupled": 0, "d": 24}


@pytest.fixture(scope="module")
def short():
    """Few concepts, so that a few hundred steps are enough."""
    pair = PairedFeatures(**SMALL, probability=0.15, seed=4)
    return bench(["l1_sum", "batch_topk"], steps=400, features=pair, measured_tokens=20_000)


def test_every_configuration_can_be_trained():
    for chosen in CONFIGURATIONS.values():
        check_recipe(chosen.recipe)
    with pytest.raises(InputError, match="Did you mean 'batch_topk'"):
        bench(["batch_topkk"])


def test_a_model_against_itself_shows_nothing_new():
    pair = PairedFeatures(**SMALL, seed=4)
    for noisy, tolerance in ((False, 1e-6), (True, 0.01)):
        null = pair.null(independent_noise=noisy)
        found = bench(["l1_sum", "batch_topk"], steps=100, features=null, measured_tokens=20_000)
        for dictionary in found.dictionaries.values():
            base, chat = dictionary.decoder_norms()
            assert (base - chat).abs().max() / chat.max() <= 2 * tolerance
            if noisy:
                continue
            nu = latent_scaling(dictionary, found.source.batches()).ratio("reconstruction")
            assert torch.allclose(nu.value[nu.defined], torch.ones(1, dtype=torch.float64), atol=1e-5)
            assert bool(nu.defined.any())


def test_the_truth_of_a_short_run_is_counted(short):
    found = measure(short, "l1_sum")  # in so short a run only the penalty has emptied the other model's rows
    assert found.recall == 1.0
    assert found.artifacts == 0.0
    assert found.kept_precision == 1.0
    assert found.looks_chat_only - found.unmatched >= 3
    assert min(found.variance_explained) > 0.7
    recorded = short.dictionaries["batch_topk"].cfg.metadata["recorded"]
    fresh = explained_variances(short.dictionaries["batch_topk"], short.source)
    for name, value in zip(("base", "chat"), fresh, strict=True):
        assert recorded[f"explained_variance/{name}"] == pytest.approx(value, abs=0.02)


def test_the_calibrated_threshold_keeps_as_many_latents_as_were_asked_for(short):
    assert measure(short, "batch_topk").l0 == pytest.approx(3, rel=0.05)


def test_targets_are_read_off_every_seed():
    good = Measured([0.98, 0.98], 3.0, 15, 0, 0.45, 1.0, 1.0, 1.0, 1.0, 8, [0.001], [0.01], 0.05, 2.0)
    claims = targets([{"l1_sum": good}, {"l1_sum": good}])
    assert claims
    assert all(claim.holds for claim in claims)
    bad = Measured([0.98, 0.98], 3.0, 15, 0, 0.1, 1.0, 1.0, 1.0, 1.0, 8, [0.001], [0.01], 0.05, 2.0)
    failed = [claim.sentence for claim in targets([{"l1_sum": good}, {"l1_sum": bad}]) if not claim.holds]
    assert failed == ["l1_sum: artifacts, each"]
