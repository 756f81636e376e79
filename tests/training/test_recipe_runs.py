"""Every recipe from a stream to a file: what was trained is what loads, and a run that was cut off ends the same."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from recipe_cases import sparsity

import saeworks
from saeworks.activations.streams import SyntheticStream
from saeworks.runtime import generator
from saeworks.training import checkpoints
from saeworks.training.cells import MemberConfig
from saeworks.training.penalties import Lp
from saeworks.training.recipes import RECIPES, recipe
from saeworks.training.resampling import Resampling
from saeworks.training.schedules import KAnneal, Span
from saeworks.training.trainer import Trainer, TrainerConfig

D, WIDTH, STEPS = 16, 64, 40


@dataclass(frozen=True)
class Features:
    """Forty sparse features, seen from one place, from two that differ in size, or beside what follows from them."""

    inputs: str

    @property
    def directions(self):
        rows = torch.randn(40, 3 * D, generator=generator(0, "directions"))
        return torch.nn.functional.normalize(rows.view(40, 3, D), dim=2).view(40, 3 * D)

    def sample(self, count, generator):
        codes = (torch.rand(count, 40, generator=generator) < 0.05) * torch.rand(count, 40, generator=generator)
        first, second, third = ((codes @ part) + 0.2 for part in self.directions.split(D, dim=1))
        if self.inputs == "sources":
            return SimpleNamespace(activations=torch.stack([first, 8 * second], dim=1))
        if self.inputs == "target":
            return SimpleNamespace(activations=first, targets=30 * third[:, : D - 3])
        return SimpleNamespace(activations=first)


# What adapts over a run, beyond what the recipes themselves have.
MECHANISMS = {
    "resampled": recipe("relu", name="resampled", resampling=Resampling(every=Span(None, 0.2))),
    "annealed": recipe("p_anneal", name="annealed", penalties=(Lp(begin=0.1, queue=3),)),
    "falling_k": recipe("batch_topk", name="falling_k", k_anneal=KAnneal(over=Span(None, 0.6))),
    "averaged": recipe("topk", name="averaged", weight_average=0.9),
    "signs": recipe("sparsify", name="signs"),
    "relative_window": recipe("jumprelu", name="relative_window", jump=replace(recipe("jumprelu").jump, relative=True)),
}
ALL = {**RECIPES, **MECHANISMS}
SETTINGS = TrainerConfig(tokens=64 * STEPS, batch_size=64, log_every=20, checkpoint_every=7, calibration_tokens=2048)


def cells(inputs, names=ALL):
    chosen = [ALL[name] for name in names if ALL[name].inputs == inputs]
    return [MemberConfig(r, WIDTH, sparsity(r), 0, 3e-3) for r in chosen]


def trainer(directory, members, config=SETTINGS):
    (inputs,) = {m.recipe.inputs for m in members}
    return Trainer(SyntheticStream(Features(inputs), seed=1), members, config, Path(directory))


def files(directory):
    return {p.relative_to(directory): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}


INPUTS = pytest.mark.parametrize("inputs", ["same", "target", "sources"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The trainers of all recipes after a whole run, by what they read, and where they wrote."""
    done = {}
    for inputs in ("same", "target", "sources"):
        directory = tmp_path_factory.mktemp(inputs)
        done[inputs] = trainer(directory, cells(inputs)), directory
        done[inputs][0].run()
    return done


def reconstruction(member, x, on):
    """What the trained tensors make of normalised rows with the given latents switched on."""
    p = member.exported_parameters()
    u = (x - p["b_dec"] if member.config.recipe.pre_bias else x) @ p["encoder"].T
    z = torch.exp(p["r_mag"]) * u + p["b_enc"] if "r_mag" in p else u + p["b_enc"]
    out = (z * on) @ p["decoder"] + p["b_dec"]
    return u, z, out + x @ p["W_skip"] if "W_skip" in p else out


def switched_on(member, u, z, on):
    """Whether ``on`` is what the selection of training would choose, with a threshold for that of a batch."""
    p, recipe = member.exported_parameters(), member.config.recipe
    if recipe.selection == "gated":
        return torch.equal(on, (u + p["b_gate"] > 0) & (z > 0))
    if recipe.selection == "relu":
        return torch.equal(on, z > 0)
    if recipe.selection == "jumprelu":
        return torch.equal(on, z > p["threshold"])
    scores = z.clone()
    if recipe.norm_weighted:
        scores *= p["decoder"].view(WIDTH, 2, D).norm(dim=2).sum(dim=1)
    if recipe.selection == "batch_topk":  # one number tells those that are on from those that are off
        return float(scores[on].min()) > float(scores[~on].max())
    k = int(member.config.sparsity)
    if recipe.selection == "groupmax":
        blocks = scores.view(len(z), k, -1)
        best = torch.zeros_like(blocks).scatter(2, blocks.argmax(dim=2, keepdim=True), 1)
        return torch.equal(on, (best.view_as(z) > 0) & (z > 0))
    return torch.equal(on, torch.zeros_like(z).scatter(1, scores.topk(k, dim=1).indices, 1).bool() & (z > 0))


@INPUTS
def test_what_loads_is_what_was_trained(inputs, finished):
    ran, directory = finished[inputs]
    batch = SyntheticStream(Features(inputs), seed=9).next_batch(256)
    for member in ran.members:
        loaded = saeworks.load(directory / "dictionaries" / member.name)
        x, y = ran.inputs.rows(batch, member.config)
        on = loaded.encode(batch.activations) > 0
        u, z, expected = reconstruction(member, x, on)
        assert switched_on(member, u, z, on), member.name
        got = loaded(batch.activations).flatten(1)
        scale = ran.inputs.target_scale(member.config) or ran.inputs.scale(member.config)
        factors = torch.tensor(scale).repeat_interleave(D) if isinstance(scale, list) else scale
        assert torch.allclose(got * factors, expected, atol=1e-4), member.name
        # What was recorded on other tokens holds on these.
        truth = x if y is None else y
        explained = 1 - (truth - expected).square().sum() / (truth - truth.mean(dim=0)).square().sum()
        recorded = loaded.cfg.metadata["recorded"]
        assert recorded["explained_variance"] == pytest.approx(float(explained), abs=0.1), member.name
        assert recorded["l0"] == pytest.approx(float(on.sum(dim=1).float().mean()), rel=0.15)


@INPUTS
def test_a_dictionary_says_what_it_was_trained_on(inputs, finished):
    ran, directory = finished[inputs]
    for member in ran.members:
        cfg = saeworks.load(directory / "dictionaries" / member.name).cfg
        assert cfg.metadata["recipe"] == member.config.recipe.name
        assert (cfg.d_out, cfg.sources) == (
            {"target": D - 3}.get(inputs),
            ("source0", "source1") if inputs == "sources" else None,
        )
        scales = cfg.metadata["normalization"]["scale"]
        if inputs == "sources" and member.config.recipe.normalization == "unit_msn":
            assert scales[0] / scales[1] == pytest.approx(8, rel=0.2), "every source has a scale of its own"


def test_the_log_has_the_health_of_every_recipe(finished):
    ran, directory = finished["same"]
    lines = [json.loads(line) for line in (directory / "train_log.jsonl").read_text().splitlines()]
    assert len(lines) == STEPS // 20 * len(ran.members)
    last = {line["dictionary"]: line for line in lines[-len(ran.members) :]}
    for member in ran.members:
        line, chosen = last[member.name], member.config.recipe
        assert line["sparsity/dead_fraction"] == member.dead().numel() / WIDTH == line["sparsity/dead_features"] / WIDTH
        assert ("details/in_window" in line) == (chosen.selection == "jumprelu")
        assert ("details/threshold_mean" in line) == (chosen.selection == "jumprelu")
        assert ("details/penalty" in line) == any(p.coefficient is None for p in chosen.penalties)
        assert ("details/p" in line) == (chosen.lp is not None)
        assert ("losses/gate" in line) == (chosen.selection == "gated")
        assert {f"losses/{p.kind}" for p in chosen.penalties} <= line.keys()
    assert 0 <= last["jumprelu_n64_k4_s0"]["details/in_window"] < 0.1
    assert last["annealed_n64_l0.015_s0"]["details/p"] < 1


class Stopped(Exception):
    pass


@INPUTS
def test_a_run_cut_off_between_checkpoints_ends_with_the_same_bytes(inputs, finished, tmp_path, monkeypatch):
    broken = trainer(tmp_path, cells(inputs))
    step = broken._step

    def failing(x):
        if broken.state.step == 24:
            raise Stopped
        return step(x)

    monkeypatch.setattr(broken, "_step", failing)
    with pytest.raises(Stopped):
        broken.run()
    assert checkpoints.latest(tmp_path / "checkpoints").name == "step-21"
    trainer(tmp_path, cells(inputs)).run(resume=True)
    assert files(tmp_path / "dictionaries") == files(finished[inputs][1] / "dictionaries")


# A controller of the penalty, resampling, falling exponents and numbers of latents, prefixes drawn at every step and
# averages of the weights, each in the middle of what it does when the process dies.
KILLED = ("matryoshka_relu_sampled", "matryoshka_batch_topk_sampled", "jumprelu", "gated", *MECHANISMS)
LONG = replace(SETTINGS, tokens=64 * 160, checkpoint_every=10)
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from test_recipe_runs import KILLED, LONG, cells, trainer
trainer(sys.argv[1], cells("same", KILLED), LONG).run(resume=True)
"""


def _saved(directory):
    """Step of the newest checkpoint, −1 before the first."""
    newest = checkpoints.latest(directory / "checkpoints")
    return -1 if newest is None else int(newest.name[5:])


def test_a_killed_run_of_everything_that_adapts_ends_with_the_same_bytes(tmp_path):
    trainer(tmp_path / "whole", cells("same", KILLED), LONG).run()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "killed"), str(Path(__file__).parent)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "SAEWORKS_NO_PROGRESS": "1"},
    )
    while process.poll() is None and _saved(tmp_path / "killed") < 40:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed; make it longer"
    assert 40 <= _saved(tmp_path / "killed") < 160
    trainer(tmp_path / "killed", cells("same", KILLED), LONG).run(resume=True)
    assert files(tmp_path / "whole" / "dictionaries") == files(tmp_path / "killed" / "dictionaries")
