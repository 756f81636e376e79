"""The trainer: one stream for many dictionaries, logs, failures, and resuming to the same bits after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from saeworks.activations.streams import SyntheticStream
from saeworks.errors import InputError, RunError
from saeworks.runtime import generator
from saeworks.training import checkpoints
from saeworks.training import trainer as trainer_module
from saeworks.training.member import MemberConfig
from saeworks.training.recipes import recipe
from saeworks.training.trainer import Trainer, TrainerConfig


@dataclass(frozen=True)
class Features:
    """Forty sparse features in sixteen dimensions."""

    seed: int = 0

    @property
    def directions(self):
        rows = torch.randn(40, 16, generator=generator(self.seed, "directions"))
        return torch.nn.functional.normalize(rows, dim=1)

    def sample(self, count, generator):
        codes = (torch.rand(count, 40, generator=generator) < 0.05) * torch.rand(count, 40, generator=generator)
        return SimpleNamespace(activations=codes @ self.directions + 0.2, codes=codes)


class Recorded(SyntheticStream):
    """Counts the activations handed out."""

    asked = 0

    def next_batch(self, count):
        self.asked += count
        return super().next_batch(count)


NAMES = ("topk", "batch_topk", "matryoshka_batch_topk")
GRID = [MemberConfig(recipe(name), 64, k, 0, 3e-3) for name in NAMES for k in (2, 4)]
SETTINGS = TrainerConfig(tokens=64 * 120, batch_size=64, log_every=10, checkpoint_every=7)


def trainer(directory, members=GRID, config=SETTINGS, stream=None):
    return Trainer(stream or SyntheticStream(Features()), members, config, Path(directory))


def files(directory):
    return {p.relative_to(directory): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}


def steps_in_log(directory):
    lines = [json.loads(line) for line in (Path(directory) / "train_log.jsonl").read_text().splitlines()]
    return lines


def test_every_dictionary_sees_the_same_batches_and_is_saved(tmp_path):
    stream = Recorded(Features())
    done = trainer(tmp_path, stream=stream).run()
    assert set(done) == {m.name for m in GRID}
    extra = 4096 + 8192  # scale and biases before training, thresholds after it
    assert stream.asked == SETTINGS.tokens + extra, "one pass over the stream feeds the whole grid"
    for name, dictionary in done.items():
        assert (tmp_path / "dictionaries" / name / "weights.safetensors").is_file()
        recorded = dictionary.cfg.metadata["recorded"]
        assert recorded["explained_variance"] > 0.3
        assert recorded["l0"] == pytest.approx(dictionary.cfg.metadata["k"], rel=0.15)


def test_a_grid_gives_each_member_what_it_gets_alone(tmp_path):
    alone = trainer(tmp_path / "alone", GRID[-1:]).run()
    together = trainer(tmp_path / "grid").run()
    for name, dictionary in alone.items():
        assert torch.equal(dictionary.W_dec, together[name].W_dec)


def test_the_log_has_a_line_per_step_and_dictionary_with_the_fields_names(tmp_path):
    trainer(tmp_path).run()
    lines = steps_in_log(tmp_path)
    assert len(lines) == 12 * len(GRID)
    first, last = lines[0], lines[-len(GRID)]
    assert {"metrics/l0", "metrics/explained_variance", "losses/overall_loss", "sparsity/dead_features"} <= set(first)
    assert last["metrics/explained_variance"] > first["metrics/explained_variance"]
    assert last["tokens"] == SETTINGS.tokens
    nested = next(line for line in lines if line["dictionary"].startswith("matryoshka"))
    prefixes = [nested[f"metrics/explained_variance_prefix_{m}"] for m in (2, 6, 14, 30, 64)]
    assert len(prefixes) == 5


def test_a_diverging_member_is_frozen_and_the_others_go_on(tmp_path):
    wild = MemberConfig(recipe("topk"), 64, 2, 7, 1e30)
    done = trainer(tmp_path, [wild, GRID[0]]).run()
    assert set(done) == {GRID[0].name}
    failures = json.loads((tmp_path / "failures.json").read_text())
    assert "learning rate" in failures[wild.name]
    assert any("failure" in line for line in steps_in_log(tmp_path))
    with pytest.raises(RunError, match="Every dictionary failed"):
        trainer(tmp_path / "all", [wild]).run()


def test_weights_that_are_not_finite_freeze_their_member_alone(tmp_path):
    """At this rate the first update overflows although the loss before it was finite, and a checkpoint follows."""
    wild = MemberConfig(recipe("batch_topk"), 64, 2, 7, 1e38)
    settings = TrainerConfig(tokens=64 * 30, batch_size=64, checkpoint_every=1)
    assert set(trainer(tmp_path, [wild, GRID[0]], settings).run()) == {GRID[0].name}
    assert "weights stopped being finite" in json.loads((tmp_path / "failures.json").read_text())[wild.name]


class Constant(SyntheticStream):
    def next_batch(self, count):
        batch = super().next_batch(count)
        batch.activations.fill_(0.3)
        return batch


def test_activations_that_never_change_are_a_sentence(tmp_path):
    with pytest.raises(InputError, match="same vector"):
        trainer(tmp_path, stream=Constant(Features())).run()


class Damaged(Recorded):
    """Not a number in one row, after the rows from which scales are estimated."""

    def next_batch(self, count):
        batch = super().next_batch(count)
        if self.asked > 64 * 90:
            batch.activations[3] = float("nan")
        return batch


def test_activations_that_are_not_finite_are_not_taken_for_a_rate_that_is_too_high(tmp_path):
    with pytest.raises(InputError, match=r"not finite at step \d+; check the model"):
        trainer(tmp_path, stream=Damaged(Features())).run()
    newest = checkpoints.latest(tmp_path / "checkpoints")
    assert newest is not None
    assert int(newest.name.removeprefix("step-")) > 0


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [1, 14, 60, 119])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, at, monkeypatch):
    trainer(tmp_path / "whole").run()
    broken = trainer(tmp_path / "broken")
    step = broken._step

    def failing(x):
        if broken.state.step == at:
            raise Stopped
        return step(x)

    monkeypatch.setattr(broken, "_step", failing)
    with pytest.raises(Stopped):
        broken.run()
    trainer(tmp_path / "broken").run(resume=True)
    whole, resumed = files(tmp_path / "whole" / "dictionaries"), files(tmp_path / "broken" / "dictionaries")
    assert whole == resumed

    def without_rate(lines):
        return [{k: v for k, v in line.items() if not k.startswith("performance/")} for line in lines]

    assert without_rate(steps_in_log(tmp_path / "whole")) == without_rate(steps_in_log(tmp_path / "broken"))


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    trainer(tmp_path).run()
    before = files(tmp_path)
    trainer(tmp_path).run(resume=True)
    assert files(tmp_path) == before


@pytest.mark.parametrize("resume", [True, False])
def test_dictionaries_of_an_earlier_run_are_not_taken_for_new_ones(tmp_path, resume):
    trainer(tmp_path, GRID[:1]).run()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(InputError, match="earlier run"):
        trainer(tmp_path, GRID[:1], stream=SyntheticStream(Features(), seed=5)).run(resume=resume)


def test_half_a_dictionary_of_a_killed_run_is_removed(tmp_path):
    trainer(tmp_path, GRID[:1]).run()
    shutil.rmtree(tmp_path / "dictionaries" / GRID[0].name)
    half = tmp_path / "dictionaries" / f".{GRID[0].name}.1.tmp"
    half.mkdir()
    (half / "cfg.json").write_text("{}")
    trainer(tmp_path, GRID[:1]).run(resume=True)
    assert [p.name for p in (tmp_path / "dictionaries").glob("*/cfg.json")] == ["cfg.json"]
    assert not half.exists()


def test_the_progress_bar_of_a_resumed_run_counts_only_new_tokens_for_its_rate(tmp_path, monkeypatch):
    asked = []
    real = trainer_module.progress
    monkeypatch.setattr(trainer_module, "progress", lambda *a, **o: asked.append(o.get("initial")) or real(*a, **o))
    trainer(tmp_path, GRID[:1]).run()
    shutil.rmtree(tmp_path / "checkpoints" / "step-120")
    shutil.rmtree(tmp_path / "dictionaries")
    trainer(tmp_path, GRID[:1]).run(resume=True)
    assert asked == [0, 119 * 64]


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from test_trainer import GRID, trainer
from saeworks.training.trainer import TrainerConfig
config = TrainerConfig(tokens=64 * 1500, batch_size=64, log_every=50, checkpoint_every=25)
trainer(sys.argv[1], GRID[1::2], config).run(resume=True)
"""


def start(directory):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(directory), str(Path(__file__).parent)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "SAEWORKS_NO_PROGRESS": "1"},
    )


def test_three_kills_at_arbitrary_moments_leave_the_same_final_bytes(tmp_path):
    process = start(tmp_path / "whole")
    assert process.wait() == 0
    killed_at = []
    for seconds in (0.31, 0.83, 0.57):
        process = start(tmp_path / "killed")
        seen = checkpoints.latest(tmp_path / "killed" / "checkpoints")
        while process.poll() is None and checkpoints.latest(tmp_path / "killed" / "checkpoints") == seen:
            time.sleep(0.01)  # let it get past where the last one was killed
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed; make it longer"
        killed_at.append(checkpoints.latest(tmp_path / "killed" / "checkpoints").name)
    assert len(set(killed_at)) == 3
    assert start(tmp_path / "killed").wait() == 0
    assert files(tmp_path / "whole" / "dictionaries") == files(tmp_path / "killed" / "dictionaries")
    left = [p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()]
    assert len(left) == checkpoints.KEEP, left


def test_an_interrupt_saves_a_checkpoint_between_two_steps(tmp_path):
    running = trainer(tmp_path, config=TrainerConfig(tokens=64 * 120, batch_size=64, checkpoint_seconds=1e9))
    step = running._step

    def interrupting(x):
        if running.state.step == 40:
            os.kill(os.getpid(), signal.SIGINT)
        return step(x)

    running._step = interrupting
    with pytest.raises(KeyboardInterrupt):
        running.run()
    assert checkpoints.latest(tmp_path / "checkpoints").name == "step-41"
    done = trainer(tmp_path, config=TrainerConfig(tokens=64 * 120, batch_size=64)).run(resume=True)
    whole = trainer(tmp_path / "whole").run()
    assert all(torch.equal(whole[name].W_dec, d.W_dec) for name, d in done.items())


def test_a_second_interrupt_stops_at_once(tmp_path):
    running = trainer(tmp_path, GRID[:1])
    seen = []

    def hanging(x):
        os.kill(os.getpid(), signal.SIGINT)
        seen.append("first")
        os.kill(os.getpid(), signal.SIGINT)
        seen.append("second")

    running._step = hanging
    with pytest.raises(KeyboardInterrupt):
        running.run()
    assert seen == ["first"]
    assert checkpoints.latest(tmp_path / "checkpoints").name == "step-0"


def test_the_same_trainer_resumes_from_before_its_first_step(tmp_path):
    config = TrainerConfig(tokens=64 * 20, batch_size=64, checkpoint_seconds=1e9)
    broken = trainer(tmp_path / "broken", GRID[:1], config)
    step = broken._step

    def failing(x):
        if broken.state.step == 10:
            raise Stopped
        return step(x)

    broken._step = failing
    with pytest.raises(Stopped):
        broken.run()
    broken._step = step
    whole = trainer(tmp_path / "whole", GRID[:1], config).run()
    for name, dictionary in broken.run(resume=True).items():
        assert torch.equal(dictionary.W_dec, whole[name].W_dec)


def test_an_interrupt_during_the_last_save_is_not_lost(tmp_path):
    running = trainer(tmp_path, GRID[:1])
    save = running._save

    def interrupted():
        save()
        if running.state.step == 120:
            os.kill(os.getpid(), signal.SIGINT)

    running._save = interrupted
    with pytest.raises(KeyboardInterrupt):
        running.run()
    assert checkpoints.latest(tmp_path / "checkpoints").name == "step-120"
    assert not (tmp_path / "dictionaries").exists()


def test_checkpoints_hold_dictionaries_that_load(tmp_path):
    import saeworks

    trainer(tmp_path).run()
    newest = checkpoints.latest(tmp_path / "checkpoints")
    loaded = saeworks.load(newest / "dictionaries" / GRID[2].name)
    assert loaded.cfg.metadata["threshold_source"] == "moving_average"
    assert float(loaded.threshold[0]) > 0


def test_resuming_with_other_settings_or_a_damaged_checkpoint_is_a_sentence(tmp_path):
    trainer(tmp_path).run()
    with pytest.raises(InputError, match="already holds a run"):
        trainer(tmp_path).run()
    with pytest.raises(InputError, match="started with other settings"):
        trainer(tmp_path, GRID[:2]).run(resume=True)
    with pytest.raises(InputError, match="started with other settings"):
        trainer(tmp_path, stream=SyntheticStream(Features(seed=1))).run(resume=True)
    newest = checkpoints.latest(tmp_path / "checkpoints")
    data = (newest / "state.safetensors").read_bytes()
    (newest / "state.safetensors").write_bytes(data[:-10])
    with pytest.raises(InputError, match="damaged"):
        trainer(tmp_path).run(resume=True)


def test_grids_that_cannot_be_trained_are_sentences(tmp_path):
    with pytest.raises(InputError, match="differ"):
        trainer(tmp_path, [GRID[0], GRID[0]])
    with pytest.raises(InputError, match="batch_size 1 must be at least 2"):
        trainer(tmp_path, config=TrainerConfig(tokens=10, batch_size=1))
    with pytest.raises(InputError, match="log_every 0"):
        trainer(tmp_path, config=TrainerConfig(tokens=64, batch_size=64, log_every=0))
    with pytest.raises(InputError, match="checkpoint_every 0"):
        trainer(tmp_path, config=TrainerConfig(tokens=64, batch_size=64, checkpoint_every=0))
    with pytest.raises(InputError, match="less than one batch"):
        trainer(tmp_path, config=TrainerConfig(tokens=10, batch_size=64))
