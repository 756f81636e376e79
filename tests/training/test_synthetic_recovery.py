"""Dictionaries find what the synthetic generators hide: pairs, composites and their atoms, coarse and fine concepts."""

from __future__ import annotations

import torch
from torch import Tensor

from saeworks.activations.streams import SyntheticStream
from saeworks.runtime import generator
from saeworks.training.member import MemberConfig
from saeworks.training.recipes import recipe
from saeworks.training.trainer import Trainer, TrainerConfig
from saeworks.world.synthetic import (
    CompositionalFeatures,
    MultiScaleFeatures,
    PairedFeatures,
    SyntheticFeatures,
    norm_difference,
    recovery,
)


def batch_topk(features, width, k, steps, directory):
    """One dictionary trained by the package's trainer."""
    config = TrainerConfig(tokens=512 * steps, batch_size=512, checkpoint_seconds=1e9, log_every=100)
    member = MemberConfig(recipe("batch_topk"), width, k, 0, 5e-3)
    (dictionary,) = Trainer(SyntheticStream(features, seed=3), [member], config, directory).run().values()
    return dictionary


def penalised(features: SyntheticFeatures, width: int, penalty: float, steps: int) -> tuple[Tensor, Tensor]:
    """Decoder rows and latents on 20,000 tokens of a plain dictionary with an L1 penalty, which prefers wholes.

    Rows start from data: from random rows few composites are found.
    """
    draw = generator(0, "penalised")
    pool = features.sample(65_536, draw).activations
    start = pool[torch.randperm(len(pool), generator=draw)[:width]] - pool.mean(0)
    start = start + 1e-3 * torch.randn(start.shape, generator=draw)
    start = start / start.norm(dim=1, keepdim=True)
    decoder, encoder, b_dec, b_enc = start.clone(), start.T.clone(), pool.median(0).values, torch.zeros(width)
    parameters = [p.requires_grad_() for p in (decoder, encoder, b_dec, b_enc)]
    optimizer = torch.optim.Adam(parameters)

    def encode(x: Tensor) -> Tensor:
        return ((x - b_dec) @ encoder + b_enc).relu()

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 100, 5 * (1 - step / steps))
        x = pool[torch.randint(len(pool), (512,), generator=draw)]
        latents = encode(x)
        error = (x - latents @ decoder - b_dec).square().sum(1).mean()
        loss = error + penalty * min(1.0, 8 * step / steps) * latents.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
    with torch.no_grad():
        return decoder.detach(), encode(features.sample(20_000, draw).activations)


def test_a_dictionary_over_both_models_finds_the_pair_with_its_strengths(tmp_path) -> None:
    pair = PairedFeatures()
    joined = pair.concatenated()
    dictionary = batch_topk(joined, 128, 3, 600, tmp_path)
    whole = [i for i, group in enumerate(pair.groups) if group != "decoupled"]
    found = recovery(dictionary.W_dec, joined.joint[whole])
    assert found.recall >= 0.85
    assert found.mean_max_cosine >= 0.95
    clear = found.matching.cosines >= 0.9
    norms = dictionary.W_dec.detach().view(-1, 2, pair.d).norm(dim=2)[found.matching.latents[clear]].T
    truth = norm_difference(pair.scales[:, whole])[found.matching.features[clear]]
    # Without a penalty on norms nothing shrinks: 1 - a / 2 for a concept with strength a in the base.
    assert float((norm_difference(norms) - truth).abs().median()) < 0.01


def test_attributes_are_found_where_they_also_occur_alone(tmp_path) -> None:
    world = CompositionalFeatures(groups=(4, 4), background=8, d=24, object_probability=0.3, p_single=0.5)
    dictionary = batch_topk(world, 24, world.expected_l0, 800, tmp_path)
    assert recovery(dictionary.W_dec, world.directions[:8]).recall == 1.0
    assert recovery(dictionary.W_dec, world.directions).mean_max_cosine >= 0.9


def test_a_large_dictionary_stores_composites_instead_of_attributes() -> None:
    world = CompositionalFeatures(groups=(4, 4), background=8, d=24)
    rows, latents = penalised(world, 64, 0.2, 1000)
    assert recovery(rows, world.composite_directions, latents=latents).recall >= 0.8
    assert recovery(rows, world.directions[:8], latents=latents).recall <= 0.25


def test_small_dictionaries_find_coarse_concepts_and_large_ones_split_them(tmp_path) -> None:
    world = MultiScaleFeatures(
        n_coarse=3,
        splits=((0.4, 0.3, 0.3),),
        detail=0.7,
        novel=4,
        novel_probabilities=(0.05, 0.02),
        d=16,
        coarse_probability=0.2,
    )
    coarse, fine = world.scale(0).rows, world.scale(1).rows
    dictionary = batch_topk(world, 6, 0.73, 600, tmp_path)
    assert recovery(dictionary.W_dec, coarse, 0.95).recall == 1.0
    rows, latents = penalised(world, 48, 0.3, 1000)
    assert recovery(rows, coarse, 0.95, latents).recall == 0.0
    assert recovery(rows, fine, 0.95, latents).recall >= 0.5
