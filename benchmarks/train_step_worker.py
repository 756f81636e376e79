"""One library training one dictionary: the part of benchmarks/train_step.py that runs in that library's environment.

    PYTHON train_step_worker.py LIBRARY RECIPE FOLDER THREADS [LIKE]

FOLDER/start.pt holds activations, first weights and settings: all libraries start from the same bits. Every line on
standard input is a command, answered with a line of JSON: ``step`` trains on the next batch, ``peak`` tells the memory;
ours knows further ones. With LIKE, ours computes exactly what the named library does. Every other library is used the
way its own training loop uses it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor], float]
Commands = dict[str, Callable[[], dict[str, Any]]]
# Settings that all libraries share.
L1, RATE, STEPS = 0.02, 1e-4, 100_000
# Distribution, and what is loaded before memory is counted.
IMPORTS = {
    "ours": ("saeworks", ["train_step_ours"]),
    "dense": ("saeworks", ["train_step_ours"]),
    "dictionary_learning": ("dictionary-learning", ["dictionary_learning", "dictionary_learning.trainers.p_anneal"]),
    "saelens": ("sae-lens", ["sae_lens", "sae_lens.training.sae_trainer"]),
    "sparsify": ("eai-sparsify", ["schedulefree", "sparsify.sparse_coder", "sparsify.sign_sgd"]),
}
FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2 + 1 / 32)


def main() -> None:
    library, recipe, folder, threads, *like = sys.argv[1:]
    torch.set_num_threads(int(threads))
    start = torch.load(Path(folder) / "start.pt", weights_only=True)
    distribution, modules = IMPORTS[library]
    imported = [import_module(name) for name in modules]
    own = {"dictionary_learning": dictionary_learning, "saelens": saelens, "sparsify": sparsify}
    make = own[library] if library in own else imported[0].make
    loaded = memory("VmRSS")
    step, commands = make(library, recipe, start, like[0] if like else None)
    try:
        released = version(distribution)
    except PackageNotFoundError:  # run from its source
        released = "source"
    answer({"library": distribution, "version": released, "torch": torch.__version__})
    forget_peak()
    number = 0
    for command in map(str.strip, sys.stdin):
        if command == "step":
            x = start["x"][number % len(start["x"])]
            started = time.perf_counter()
            loss = step(x)
            answer({"seconds": time.perf_counter() - started, "loss": float(loss)})
            number += 1
        elif command == "peak":
            answer({"peak_mb": (memory("VmHWM") - loaded) / 2**20})
        else:
            answer(commands[command]())


def answer(value: dict[str, Any]) -> None:
    print("ANSWER " + json.dumps(value), flush=True)


def memory(name: str) -> int:
    """Bytes of resident memory: now (``VmRSS``) or at most (``VmHWM``)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Let the largest resident memory count from here, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def group_sizes(width: int) -> list[int]:
    sizes = [int(fraction * width) for fraction in FRACTIONS[:-1]]
    return [*sizes, width - sum(sizes)]


def fill(module: torch.nn.Module, start: dict[str, Any], names: dict[str, str], bias: str | None = None) -> None:
    """Give a dictionary the common first weights. ``bias`` is lowered until k latents per token are active."""
    values = {
        "encoder": start["encoder"],
        "encoder.T": start["encoder"].T,
        "decoder": start["encoder"],
        "decoder.T": start["encoder"].T,
        "b_dec": start["b_dec"],
    }
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, source in names.items():
            own[name].copy_(values[source])
        if bias is not None:
            own[bias].fill_(-start["level"])


def dictionary_learning(_library: str, recipe: str, start: dict[str, Any], _like: str | None) -> tuple[Step, Commands]:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.p_anneal import PAnnealTrainer
    from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
    from dictionary_learning.trainers.top_k import TopKTrainer

    config = start["config"]
    common = {
        "steps": STEPS,
        "activation_dim": config["d"],
        "dict_size": config["width"],
        "layer": 0,
        "lm_name": "none",
    }
    common |= {"device": "cpu", "lr": RATE, "warmup_steps": 0, "seed": 0}
    by_k, penalised = {"k": config["k"]}, {"sparsity_warmup_steps": None, "l1_penalty": L1}
    linear = {"encoder.weight": "encoder", "decoder.weight": "decoder.T"}
    plain = {"W_enc": "encoder.T", "W_dec": "decoder", "b_dec": "b_dec"}
    # A sum of errors instead of one divided by the number of groups twice.
    nested = {"group_fractions": list(FRACTIONS), "group_weights": [1.0] * len(FRACTIONS)}
    annealed = {"initial_sparsity_penalty": L1, "sparsity_function": "Lp^p", "sparsity_warmup_steps": None}
    jump = {"target_l0": float(config["k"]), "sparsity_warmup_steps": None}
    kind, settings, names, bias = {
        "topk": (TopKTrainer, by_k, {**linear, "b_dec": "b_dec"}, None),
        "batch_topk": (BatchTopKTrainer, by_k, {**linear, "b_dec": "b_dec"}, None),
        "matryoshka_batch_topk": (MatryoshkaBatchTopKTrainer, {**by_k, **nested}, plain, None),
        "relu": (StandardTrainer, penalised, {**linear, "bias": "b_dec"}, "encoder.bias"),
        "relu_april": (StandardTrainerAprilUpdate, penalised, {**linear, "bias": "b_dec"}, "encoder.bias"),
        "p_anneal": (PAnnealTrainer, annealed, {**linear, "bias": "b_dec"}, "encoder.bias"),
        "gated": (GatedSAETrainer, penalised, {**linear, "decoder_bias": "b_dec"}, "gate_bias"),
        "jumprelu": (JumpReluTrainer, jump, plain, None),
    }[recipe]
    trainer = kind(**common, **settings)
    fill(trainer.ae, start, names, bias)
    if recipe == "jumprelu":
        with torch.no_grad():
            trainer.ae.threshold.fill_(start["level_without_pre_bias"])
    inner, found, count = trainer.loss, [], iter(range(1, STEPS))

    def loss(*args: Any, **kwargs: Any) -> Tensor:
        found[:] = [inner(*args, **kwargs)]
        return found[0]

    trainer.loss = loss  # most trainers do not return it

    def step(x: Tensor) -> float:
        trainer.update(next(count), x)
        return float(found[0].detach())

    return step, {}


def saelens(_library: str, recipe: str, start: dict[str, Any], _like: str | None) -> tuple[Step, Commands]:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes import batchtopk_sae, gated_sae, jumprelu_sae, matryoshka_batchtopk_sae, standard_sae, topk_sae
    from sae_lens.training.sae_trainer import SAETrainer

    config = start["config"]
    common = {"d_in": config["d"], "d_sae": config["width"], "decoder_init_norm": None}
    widths = torch.tensor(group_sizes(config["width"])).cumsum(0).tolist()
    batch, nested = batchtopk_sae, matryoshka_batchtopk_sae
    kind, settings, bias = {
        "topk": (topk_sae.TopKTrainingSAE, topk_sae.TopKTrainingSAEConfig(**common, k=config["k"]), None),
        "batch_topk": (
            batch.BatchTopKTrainingSAE,
            batch.BatchTopKTrainingSAEConfig(**common, k=float(config["k"])),
            None,
        ),
        "matryoshka_batch_topk": (
            nested.MatryoshkaBatchTopKTrainingSAE,
            nested.MatryoshkaBatchTopKTrainingSAEConfig(**common, k=float(config["k"]), matryoshka_widths=widths),
            None,
        ),
        "relu": (
            standard_sae.StandardTrainingSAE,
            standard_sae.StandardTrainingSAEConfig(**common, l1_coefficient=L1),
            "b_enc",
        ),
        "gated": (
            gated_sae.GatedTrainingSAE,
            gated_sae.GatedTrainingSAEConfig(**common, l1_coefficient=L1),
            "b_gate",
        ),
        "jumprelu": (
            jumprelu_sae.JumpReLUTrainingSAE,
            jumprelu_sae.JumpReLUTrainingSAEConfig(
                **common, l0_coefficient=L1, jumprelu_init_threshold=float(start["level"])
            ),
            None,
        ),
    }[recipe]
    sae = kind(settings)
    fill(sae, start, {"W_enc": "encoder.T", "W_dec": "decoder", "b_dec": "b_dec"}, bias)
    size = len(start["x"][0])
    trainer = SAETrainer(
        SAETrainerConfig(total_training_samples=STEPS * size, train_batch_size_samples=size, lr=RATE, lr_end=RATE),
        sae,
        iter(()),
    )

    def step(x: Tensor) -> float:
        out = trainer.step(x)
        trainer.n_training_steps += 1
        return float(out.loss.detach())

    return step, {}


def sparsify(_library: str, recipe: str, start: dict[str, Any], _like: str | None) -> tuple[Step, Commands]:
    """What its trainer does to one coder and a batch; the trainer itself wants a language model."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify.config import SparseCoderConfig
    from sparsify.sign_sgd import SignSGD
    from sparsify.sparse_coder import SparseCoder

    config = start["config"]
    settings = SparseCoderConfig(activation=recipe, num_latents=config["width"], k=config["k"])
    coder = SparseCoder(config["d"], settings, dtype=torch.float32)
    fill(coder, start, {"encoder.weight": "encoder", "W_dec": "decoder", "b_dec": "b_dec"})
    optimizer = ScheduleFreeWrapper(SignSGD([{"params": list(coder.parameters()), "lr": RATE}]), momentum=0.95)
    optimizer.train()
    fired, silent = torch.zeros(config["width"], dtype=torch.bool), torch.zeros(config["width"], dtype=torch.long)

    def step(x: Tensor) -> float:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x=x, y=x, dead_mask=None, total_variance=(x - x.mean(0)).pow(2).sum())
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        silent.add_(x.shape[0])
        silent[fired] = 0
        fired.zero_()
        return float(out.fvu.detach())

    return step, {}


if __name__ == "__main__":
    main()
