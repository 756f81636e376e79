"""What version 0.1 wrote still works: its dictionaries load, and a run that it began is continued to the same end.

``data/version-0.1`` holds a checkpoint of the run below after 20 of its 40 steps, and the dictionaries at its end.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import saeworks
from saeworks.activations.streams import SyntheticStream
from saeworks.errors import InputError
from saeworks.runtime import generator
from saeworks.training.cells import MemberConfig
from saeworks.training.recipes import recipe
from saeworks.training.trainer import Trainer, TrainerConfig

SAVED = Path(__file__).parent / "data" / "version-0.1"


@dataclass(frozen=True)
class Features:
    """Directions of quarters, so that their bytes are the same on every machine."""

    @property
    def directions(self):
        return torch.randint(-3, 4, (12, 8), generator=generator(0, "directions")) / 4

    def sample(self, count, generator):
        codes = (torch.rand(count, 12, generator=generator) < 0.1) * torch.rand(count, 12, generator=generator)
        return SimpleNamespace(activations=codes @ self.directions + 0.2, codes=codes)


def continued(directory, **changes):
    shutil.copytree(SAVED / "step-20", directory / "checkpoints" / "step-20")
    names = ("topk", "matryoshka_batch_topk")
    members = [MemberConfig(recipe(name, **changes), 32, 2, 0, 3e-3) for name in names]
    config = TrainerConfig(
        tokens=32 * 40, batch_size=32, checkpoint_every=10, normalization_tokens=512, calibration_tokens=512
    )
    return Trainer(SyntheticStream(Features()), members, config, directory)


def test_a_run_of_version_0_1_is_continued_to_its_end(tmp_path):
    done = continued(tmp_path).run(resume=True)
    assert sorted(done) == sorted(p.name for p in (SAVED / "dictionaries").iterdir())
    for name, dictionary in done.items():
        before = saeworks.load(SAVED / "dictionaries" / name)
        assert before.cfg.architecture == dictionary.cfg.architecture
        # Another machine may add up in another order; twenty steps do not carry that far.
        for tensor in ("W_enc", "W_dec", "b_enc", "b_dec"):
            assert torch.allclose(getattr(dictionary, tensor), getattr(before, tensor), rtol=1e-3, atol=1e-4), tensor
        assert dictionary.cfg.metadata["recorded"] == pytest.approx(before.cfg.metadata["recorded"], rel=1e-2)
        assert dictionary.group_sizes == before.group_sizes


def test_a_run_of_version_0_1_is_not_continued_by_another_recipe(tmp_path):
    with pytest.raises(InputError, match=r"started with other settings \(members differ\)"):
        continued(tmp_path, multi=recipe("topk").multi, pre_bias=False).run(resume=True)


def test_a_dictionary_of_version_0_1_computes_what_it_computed(tmp_path):
    x = SyntheticStream(Features(), seed=5).next_batch(64).activations
    plain = saeworks.load(SAVED / "dictionaries" / "topk_n32_k2_s0")
    z = (x - plain.b_dec) @ plain.W_enc + plain.b_enc
    f = torch.zeros_like(z).scatter(1, z.topk(2, dim=1).indices, 1) * z.relu()
    assert torch.allclose(plain(x), f @ plain.W_dec + plain.b_dec, atol=1e-5)
    plain.save(tmp_path / "again")
    assert torch.equal(saeworks.load(tmp_path / "again")(x), plain(x))
