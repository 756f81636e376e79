"""What the processes of the tests of distribution run; started by ``torchrun``, see ``test_distributed.py``.

Several runs with different numbers of ranks follow each other in one set of processes, because most of the time goes
into starting them.
"""

import json
import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from test_recipe_losses import CASES, case, case_with_ties
from test_trainer import Features

from saeworks.activations.streams import SyntheticStream
from saeworks.errors import InputError
from saeworks.training import dense, divided
from saeworks.training.cells import MemberConfig
from saeworks.training.division import Division
from saeworks.training.penalties import Lp
from saeworks.training.ranks import ALONE, joined
from saeworks.training.recipes import AuxK, recipe
from saeworks.training.resampling import Resampling
from saeworks.training.trainer import Trainer, TrainerConfig

CPU, ONE = torch.device("cpu"), torch.ones(())
NAMES = ("topk", "batch_topk", "matryoshka_batch_topk", "relu", "jumprelu")
SPARSITIES = {"relu": 0.03}
# Dead latents from the second half on, so that the auxiliary term takes part; one of them chooses among the dead.
DEAD = {"dead_after": 64 * 3, "aux_k": AuxK(k=4)}
GRID = [MemberConfig(recipe(name), 64, SPARSITIES.get(name, 4), 0, 3e-3) for name in NAMES]
GRID += [MemberConfig(recipe("batch_topk", name="batch_topk_dead", **DEAD), 64, 1, 0, 3e-3)]
# Latents that die under a strong penalty and are given new directions; a controller; an exponent that falls.
RESAMPLED = replace(recipe("relu", name="relu_dying"), resampling=Resampling(largest=0.1))
GRID += [MemberConfig(RESAMPLED, 64, 2.0, 0, 3e-2)]
GRID += [MemberConfig(recipe("matryoshka_relu"), 64, 4, 0, 3e-3)]
# Down to 0.2, the slope of f^p near 0 would turn rounding into differences that mean nothing.
ANNEALED = replace(recipe("p_anneal"), penalties=(Lp(end=0.8),))
GRID += [MemberConfig(ANNEALED, 64, 0.03, 0, 3e-3)]
STEPS = 16


def settings(steps=STEPS, every=8):
    return TrainerConfig(
        tokens=64 * steps,
        batch_size=64,
        log_every=4,
        checkpoint_every=every,
        normalization_tokens=512,
        calibration_tokens=2048,
    )


def trainer(directory, division, config=None, members=GRID):
    stream = SyntheticStream(Features())
    return Trainer(stream, members, config or settings(), Path(directory), division=division)


# The cases that are compared on four ranks, where each exchange takes longest.
FEW = ("topk", "batch_topk", "matryoshka_batch_topk", "relu", "gated", "jumprelu", "crosscoder_batch_topk", "groupmax")


class Stopped(Exception):
    """Thrown where a run is to be cut off."""


def cut_off(directory, division, at, members=GRID):
    """Train up to the step ``at``, whose checkpoint is kept."""
    running = trainer(directory, division, members=members)
    save = running._save

    def saving():
        save()
        if running.state.step == at:
            raise Stopped

    running._save = saving
    try:
        running.run()
    except Stopped:
        return
    raise AssertionError("the run was not cut off")


@contextmanager
def world(name, first, count, parallel):
    """A division over the processes ``first`` to ``first + count``; None in the others."""
    rank, whole = int(os.environ["RANK"]), dict(os.environ)
    if not first <= rank < first + count:
        yield None
        return
    # The name keeps worlds that exist at the same time apart.
    os.environ |= {"RANK": str(rank - first), "WORLD_SIZE": str(count), "TORCHELASTIC_RESTART_COUNT": name}
    try:
        with joined(CPU) as ranks:
            yield Division.of(ranks, parallel)
    finally:
        os.environ.update(whole)


def compare_losses(division, names=tuple(CASES)):
    """By recipe, path and case: the largest error of losses and gradients against one process, and whether the
    selected latents are the same."""
    found = {}
    for name in names:
        chosen = CASES[name]
        if division.by == "latents" and (
            chosen.reorder or chosen.across is not None or (chosen.selection == "groupmax" and 4 % division.ranks.count)
        ):
            continue
        for make in (case, case_with_ties):
            chosen, p, x, y, moment, m = make(name)
            # Which of equal scores a token takes is not determined; of a batch it is.
            if make is case_with_ties and chosen.selection not in ("batch_topk", "groupmax"):
                continue
            expected, codes = dense.losses(chosen, p, x, y, moment, m.widths)
            parameters = list(p)
            gradients = dict(zip(parameters, torch.autograd.grad(expected["total"], list(p.values())), strict=True))
            rows, tokens = division.rows(m.config.width), division.share(x.shape[0])
            dead = moment.dead[(moment.dead >= rows.start) & (moment.dead < rows.stop)] - rows.start
            here = replace(moment, division=division, dead=dead, all_dead=moment.dead.numel())
            for path in (dense, divided) if divided.covers(chosen) else (dense,):
                for hint in (None, 0.3, 1e3) if chosen.selection == "batch_topk" else (None,):
                    own = {n: division.cut(n, t.detach()).clone().requires_grad_() for n, t in p.items()}
                    moment_here = replace(here, hint=hint)
                    mine, found_codes = path.losses(chosen, own, x[tokens], y[tokens], moment_here, m.widths)
                    mine["total"].backward()
                    division.add_gradients(own)
                    # The share of entries in the window of a jump is a float32 number whatever the inputs are.
                    errors = [_error(mine[t], value) for t, value in expected.items() if t != "in_window"]
                    assert torch.allclose(mine.get("in_window", ONE), expected.get("in_window", ONE))
                    errors += [_error(own[n].grad, division.cut(n, g)) for n, g in gradients.items()]
                    same = torch.equal(found_codes.dense() > 0, (codes.dense() > 0)[tokens, rows])
                    label = f"{name}/{path.__name__.rsplit('.', 1)[-1]}/{'ties' if make is case_with_ties else 'plain'}"
                    before = found.get(label, [0.0, True])
                    found[label] = [max(before[0], *errors), before[1] and same]
    return found


def _error(mine, expected):
    mine, expected = mine.detach(), expected.detach()
    return float((mine - expected).abs().max() / expected.abs().max().clamp_min(1e-9))


def refusals(division):
    """The sentences with which each of some impossible runs is refused."""
    cells = {
        "width": MemberConfig(recipe("topk"), 3, 1, 0, 1e-3),
        "order": MemberConfig(recipe("matryoshka_relu_sampled"), 64, 4, 0, 1e-3),
        "groups": MemberConfig(recipe("groupmax"), 66, 6, 0, 1e-3),
    }
    said = {}
    for name, cell in cells.items():
        try:
            trainer("nowhere", division, members=[cell])
        except InputError as e:
            said[name] = str(e)
    return said


def main(out):
    out = Path(out)
    results = {}
    with world("tokens2", 0, 2, "data") as division:
        if division:
            results["losses tokens 2"] = compare_losses(division)
            trainer(out / "data2", division).run()
            cut_off(out / "data2_to_others", division, 8)
    with world("latents2", 2, 2, "latents") as division:
        if division:
            results["losses latents 2"] = compare_losses(division)
            trainer(out / "latents2", division).run()
            cut_off(out / "latents2_to_others", division, 8)
            cut_off(out / "latents2_to_itself", division, 8)
            trainer(out / "latents2_to_itself", division).run(resume=True)
    with world("tokens4", 0, 4, "data") as division:
        results["losses tokens 4"] = compare_losses(division, FEW)
        trainer(out / "data4", division).run()
        trainer(out / "latents2_to_others", division).run(resume=True)
    with world("latents4", 0, 4, "latents") as division:
        results["losses latents 4"] = compare_losses(division, FEW)
        trainer(out / "latents4", division).run()
        trainer(out / "data2_to_others", division).run(resume=True)
        results["refused"] = refusals(division)
    (out / f"results-{os.environ['RANK']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert ALONE.lead
    main(sys.argv[1])
