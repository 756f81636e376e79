"""Training divided over processes: the same results as in one, whatever is divided; checkpoints for any number of them.

One set of four processes does all that is compared here (``distributed_worker.py``). What a lost process leaves behind
is tested with the command itself.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed_worker as worker
import pytest
import torch
from test_trainer import files, steps_in_log

import saeworks
from saeworks.training import checkpoints
from saeworks.training.division import UNDIVIDED, Division
from saeworks.training.ranks import Ranks

HERE = Path(__file__).parent
WORLDS = ("tokens 2", "tokens 4", "latents 2", "latents 4")
# Float32 sums in another order, through 16 steps of Adam: ten times what was seen.
LOSS, WEIGHTS = 1e-4, 1e-5


def torchrun(processes, *arguments, **options):
    """Start ``torchrun`` on this machine; its workers find what this process finds."""
    environment = {**os.environ, "SAEWORKS_NO_PROGRESS": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(saeworks.__file__).parents[1]), str(HERE)])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Directory with the runs of ``distributed_worker.py`` and, in ``one``, of a single process; and its results."""
    out = tmp_path_factory.mktemp("worlds")
    process = torchrun(4, str(HERE / "distributed_worker.py"), str(out))
    worker.trainer(out / "one", UNDIVIDED).run()
    _, said = process.communicate()
    assert process.returncode == 0, said[-4000:]
    return out, [json.loads((out / f"results-{rank}.json").read_text()) for rank in range(4)]


@pytest.mark.parametrize("name", WORLDS)
def test_losses_and_gradients_of_every_recipe_are_those_of_one_process(worlds, name):
    _, results = worlds
    found = [result[f"losses {name}"] for result in results if f"losses {name}" in result]
    assert len(found) == int(name[-1])
    for labels in found:
        assert len(labels) > (60 if name[-1] == "2" else 12)
        assert {label.split("/")[1] for label in labels} == {"dense", "divided"}
        for label, (error, same_codes) in labels.items():
            assert error < 1e-9, label
            assert same_codes, label


@pytest.mark.parametrize("name", ["data2", "data4", "latents2", "latents4"])
def test_a_run_on_several_ranks_is_that_of_one_up_to_rounding(worlds, name):
    directory, _ = worlds
    assert_alike(directory / name, directory / "one")


def assert_alike(mine, theirs):
    lines, expected = steps_in_log(mine), steps_in_log(theirs)
    assert [line["dictionary"] for line in lines] == [line["dictionary"] for line in expected]
    assert any(line["losses/auxiliary_reconstruction_loss"] > 0 for line in lines)
    for line, other in zip(lines, expected, strict=True):
        assert line.keys() == other.keys()
        for key in ("losses/overall_loss", "metrics/l0", "metrics/explained_variance", "details/grad_norm"):
            assert line[key] == pytest.approx(other[key], rel=LOSS, abs=LOSS), (line["dictionary"], line["step"], key)
        assert line["sparsity/dead_features"] == other["sparsity/dead_features"]
    for member in worker.GRID:
        a, b = (saeworks.load(d / "dictionaries" / member.name) for d in (mine, theirs))
        for tensor in ("W_enc", "W_dec", "b_enc", "b_dec"):
            x, y = getattr(a, tensor), getattr(b, tensor)
            assert float((x - y).norm() / y.norm()) < WEIGHTS, (member.name, tensor)
        if b.threshold is not None:
            assert torch.allclose(a.threshold, b.threshold, rtol=WEIGHTS)
        mine_recorded, recorded = a.cfg.metadata["recorded"], b.cfg.metadata["recorded"]
        assert mine_recorded["explained_variance"] == pytest.approx(recorded["explained_variance"], abs=LOSS)
        assert mine_recorded["l0"] == pytest.approx(recorded["l0"], rel=WEIGHTS)


def test_only_the_first_rank_writes(worlds):
    directory, _ = worlds
    for name in ("data4", "latents4"):
        lines = steps_in_log(directory / name)
        assert len(lines) == len(worker.GRID) * worker.STEPS // 4
        assert {p.name for p in (directory / name / "dictionaries").iterdir()} == {m.name for m in worker.GRID}
        assert not list((directory / name).rglob("*.tmp"))


def test_each_rank_writes_its_own_latents(worlds):
    directory, _ = worlds
    found = {p.name for p in (directory / "latents4" / "checkpoints" / "step-16").iterdir()}
    assert {f"latents-{rank}-of-4.safetensors" for rank in range(4)} <= found
    assert "latents-0-of-2.safetensors" not in {p.name for p in (directory / "data2").rglob("*")}


def test_a_resumed_run_on_as_many_ranks_has_the_same_bits(worlds):
    directory, _ = worlds
    assert files(directory / "latents2" / "dictionaries") == files(directory / "latents2_to_itself" / "dictionaries")


@pytest.mark.parametrize("name", ["data2_to_others", "latents2_to_others"])
def test_other_ranks_divided_otherwise_continue_a_checkpoint(worlds, name):
    directory, _ = worlds
    assert_alike(directory / name, directory / "one")


@pytest.mark.parametrize("name", ["latents4", "data2"])
def test_one_process_reads_what_several_wrote(worlds, name, tmp_path):
    directory, _ = worlds
    whole = checkpoints.load_state(directory / name / "checkpoints" / "step-16")
    alone = checkpoints.load_state(directory / "one" / "checkpoints" / "step-16")
    for member, state in alone["members"].items():
        assert whole["members"][member].keys() == state.keys()
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                assert whole["members"][member][key].shape == value.shape
        encoder = whole["members"][member]["encoder"]
        assert float((encoder - state["encoder"]).norm() / encoder.norm()) < WEIGHTS


@pytest.mark.parametrize("name", ["one", "latents2"])
def test_of_a_checkpoint_each_rank_reads_its_own_latents(worlds, name):
    directory, _ = worlds
    path = directory / name / "checkpoints" / "step-16"
    whole = checkpoints.load_state(path)["members"]
    for count in (3, 4):
        parts = [
            checkpoints.load_state(path, Division(Ranks(rank, count), "latents"))["members"] for rank in range(count)
        ]
        for member, state in whole.items():
            for key in ("encoder", "adam.exp_avg.decoder", "tokens_since_fired"):
                assert torch.equal(torch.cat([part[member][key] for part in parts]), state[key])
            assert all(torch.equal(part[member]["b_dec"], state["b_dec"]) for part in parts)
            assert all(part[member]["threshold_sum"] == state["threshold_sum"] for part in parts)


def test_a_checkpoint_with_a_damaged_part_is_a_sentence(worlds, tmp_path):
    import shutil

    directory, _ = worlds
    path = tmp_path / "step-16"
    shutil.copytree(directory / "latents2" / "checkpoints" / "step-16", path)
    part = path / "latents-1-of-2.safetensors"
    part.write_bytes(part.read_bytes()[:-4])
    with pytest.raises(saeworks.errors.InputError, match="damaged"):
        checkpoints.load_state(path)


def test_what_cannot_be_divided_is_refused_in_a_sentence(worlds):
    _, results = worlds
    for result in results:
        refused = result["refused"]
        assert "fewer than the 4 ranks" in refused["width"]
        assert "use --parallel data" in refused["order"]
        assert "6 groups of latents, which 4 ranks" in refused["groups"]


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(saeworks.errors.InputError, match="64 tokens cannot be divided equally by 3"):
        Division(Ranks(0, 3), "tokens").share(64)


LONG = """
import sys
import torch
from distributed_worker import CPU, settings, trainer
from saeworks.training.division import Division
from saeworks.training.ranks import RankLost, joined
from saeworks.training.cells import MemberConfig
from saeworks.training.recipes import recipe
torch.set_num_threads(1)
members = [MemberConfig(recipe("batch_topk"), 64, 4, 0, 3e-3)]
try:
    with joined(CPU) as ranks:
        division = Division.of(ranks, sys.argv[2])
        trainer(sys.argv[1], division, settings(400, 5), members).run(resume=True)
except RankLost as e:
    if e.speaks:
        sys.stderr.write(f"saeworks: {e}\\n")
    sys.exit(1)
"""


def pid_of(launcher, rank):
    """Process number of a rank that a running ``torchrun`` started."""
    for found in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((found / "stat").read_text().rsplit(")", 1)[1].split()[1])
            variables = (found / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if parent == launcher and f"RANK={rank}".encode() in variables:
            return int(found.name)
    raise AssertionError("no such rank")


def kill_in_the_middle(process, rank, run):
    """Kill a rank after some of the checkpoints, while no more than half of them are there."""
    while len(seen := [p.name for p in (run / "checkpoints").glob("step-*")]) < 2 or "step-0" in seen:
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.01)
    os.kill(pid_of(process.pid, rank), signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for a process in /proc")
@pytest.mark.parametrize(("rank", "parallel"), [(0, "latents"), (1, "data")])
def test_a_killed_rank_stops_the_others_with_a_sentence_and_resuming_gives_the_same_bits(tmp_path, rank, parallel):
    script = tmp_path / "long.py"
    script.write_text(LONG)
    whole = torchrun(2, str(script), str(tmp_path / "whole"), parallel)
    broken = torchrun(2, str(script), str(tmp_path / "broken"), parallel)
    kill_in_the_middle(broken, rank, tmp_path / "broken")
    _, said = broken.communicate(timeout=120)
    assert broken.returncode != 0
    sentences = re.findall(r"^saeworks: .*$", said, flags=re.MULTILINE)
    assert len(sentences) == 1, said
    assert f"Rank {rank} of 2 is gone" in sentences[0]
    assert "--resume" in sentences[0]
    assert not (tmp_path / "broken" / "dictionaries").exists(), "it ended before it could be killed; make it longer"
    again = torchrun(2, str(script), str(tmp_path / "broken"), parallel)
    assert again.wait(timeout=300) == 0, again.communicate()[1]
    assert whole.wait(timeout=300) == 0
    assert files(tmp_path / "whole" / "dictionaries") == files(tmp_path / "broken" / "dictionaries")
    assert not list((tmp_path / "broken").rglob("*.tmp"))
