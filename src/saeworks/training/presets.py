"""Published settings as complete configurations: recipe, optimiser, normalisation, width, data and length.

A preset holds what its source says, setting by setting in ``sources``; where the source is silent, the default of the
house stands. Learning rates are not adapted to the length of a run. ``saeworks train --preset NAME`` takes all of it,
and every flag still wins; ``--recipe NAME`` takes the recipe alone; ``saeworks recipes NAME`` shows it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from saeworks.training.initialisation import Initialisation
from saeworks.training.penalties import L0, L1, Lp, PreAct, Tanh, TargetL0
from saeworks.training.presets_diffing import diffing
from saeworks.training.published import PRESETS, Preset, published, stated
from saeworks.training.recipes import (
    NESTED,
    RECIPES,
    SUITE_GATED,
    SUITE_L1,
    SUITE_P_ANNEAL,
    AuxK,
    Jump,
    Recipe,
)
from saeworks.training.schedules import Span, Timing

__all__ = ["PRESETS", "Preset", "diffing"]

CONSTANT = Timing(warm_up=Span(0, 0.0), decay=0.0, sparsity_warm_up=Span(0, 0.0))
PLAIN = Initialisation(scale="none", b_dec="zero")
MEDIAN = Initialisation(scale="none")
PILE, OPEN_WEB_TEXT = ("monology/pile-uncopyrighted",), ("Skylion007/openwebtext",)


@published
def saebench() -> Preset:
    """The suite of arXiv 2503.09532, trained with dictionary_learning on Pythia-160m (or Gemma-2-2B, layer 12).

    Squared errors, inputs of mean square norm 1, Adam 3e-4; warm-up over 1,000 steps, of penalties over 5,000; decay
    over the last 20 %. p-annealing begins after 10,000 of 244,000 steps. The suite divides the mean over five prefixes
    by five once more, which under Adam is the same as five times the weight of AuxK and the bound of the gradient.
    """
    common: dict[str, Any] = {
        "reconstruction": "squared",
        "learning_rate": 3e-4,
        "timing": Timing(warm_up=Span(1000, 0.1), sparsity_warm_up=Span(5000, 0.25)),
    }
    penalised: dict[str, Any] = {**common, "aux_k": None, "sparsity": "coefficient", "initialisation": PLAIN}
    recipes = (
        Recipe("relu", "relu", penalties=(L1(),), grid=SUITE_L1, clip_norm=None, **penalised),
        Recipe("relu_april", "relu", penalties=(L1(norms="joint"),), grid=SUITE_L1, constraint="free", **penalised),
        Recipe("gated", "gated", penalties=(L1(),), grid=SUITE_GATED, betas=(0.0, 0.999), clip_norm=None, **penalised),
        Recipe("p_anneal", "relu", penalties=(Lp(begin=0.041),), grid=SUITE_P_ANNEAL, clip_norm=None, **penalised),
        replace(
            Recipe("jumprelu", "jumprelu", penalties=(TargetL0(),), betas=(0.0, 0.999), pre_bias=False, **penalised),
            sparsity="l0",
        ),
        Recipe("topk", "topk", initialisation=MEDIAN, **common),
        Recipe("batch_topk", "batch_topk", initialisation=MEDIAN, **common),
        Recipe(
            "matryoshka_batch_topk",
            "batch_topk",
            group_fractions=NESTED,
            aux_k=AuxK(coefficient=5 / 32),
            clip_norm=5.0,
            initialisation=MEDIAN,
            **common,
        ),
    )
    settings = {
        "model": "EleutherAI/pythia-160m-deduped",
        "site": "layers.8.resid_post",
        "data": PILE,
        "width": (4096, 16384, 65536),
        "k": (20, 40, 80, 160, 320, 640),
        "tokens": 500_000_000,
        "batch_size": 2048,
        "context_length": 1024,
        "harvest_batch_size": 32,
        "buffer_tokens": 250_000,
    }
    sources = stated(
        ("arXiv 2503.09532", "model site data width k tokens batch_size context_length learning_rate timing grid"),
        (
            "dictionary_learning, the suite's trainers",
            "selection penalties sparsity reconstruction aux_k betas epsilon",
        ),
        ("dictionary_learning, the suite's trainers", "clip_norm constraint pre_bias initialisation group_fractions"),
        ("dictionary_learning, the suite's trainers", "normalization jump dead_after optimizer"),
        ("dictionary_learning_demo", "harvest_batch_size buffer_tokens"),
    )
    return Preset("saebench", tuple(replace(r, name=f"saebench-{r.name}") for r in recipes), sources, settings)


@published
def batchtopk_gpt2() -> Preset:
    """The main experiment of arXiv 2412.06410 and its released code: GPT-2 small, layer 8, width 12,288.

    Tokens are brought to mean 0 and standard deviation 1 each; a latent is dead after 5 batches; no schedule and no
    clipping. The code takes the residual of AuxK with its gradient and does not divide by its variance, and it never
    uses its encoder bias; here the residual is detached, AuxK is normalised, and the bias learns.
    """
    recipe = Recipe(
        "batchtopk-gpt2",
        "batch_topk",
        aux_k=AuxK(k=512),
        betas=(0.9, 0.99),
        clip_norm=None,
        normalization="none",
        input_op="layer_norm",
        initialisation=PLAIN,
        timing=CONSTANT,
        learning_rate=3e-4,
        dead_after=5 * 4096,
    )
    settings = {
        "model": "gpt2",
        "site": "layers.8.resid_pre",
        "data": OPEN_WEB_TEXT,
        "width": (12288,),
        "k": (16, 32, 64),
        "tokens": 1_000_000_000,
        "batch_size": 4096,
        "context_length": 128,
        "harvest_batch_size": 512,
        "buffer_tokens": 655_360,
    }
    sources = stated(
        ("arXiv 2412.06410", "selection sparsity model site data width k tokens learning_rate betas batch_size"),
        ("arXiv 2412.06410", "context_length optimizer"),
        ("its code", "aux_k clip_norm normalization input_op initialisation timing dead_after constraint pre_bias"),
        ("its code", "harvest_batch_size buffer_tokens"),
    )
    return Preset("batchtopk-gpt2", (recipe,), sources, settings)


@published
def matryoshka_gemma2() -> Preset:
    """The main experiment of arXiv 2503.17547: Gemma-2-2B, layer 12, 65,536 latents, five prefixes, errors added."""
    recipe = Recipe(
        "matryoshka-gemma2",
        "batch_topk",
        group_fractions=NESTED,
        prefix_sum=True,
        reconstruction="squared",
        initialisation=MEDIAN,
        learning_rate=3e-4,
    )
    settings = {
        "model": "google/gemma-2-2b",
        "site": "layers.12.resid_post",
        "data": PILE,
        "width": (65536,),
        "k": (20, 40, 80, 160, 320),
        "tokens": 500_000_000,
        "batch_size": 2048,
        "context_length": 1024,
        "harvest_batch_size": 4,
        "buffer_tokens": 250_000,
    }
    sources = stated(
        ("arXiv 2503.17547", "selection sparsity group_fractions prefix_sum reconstruction learning_rate optimizer"),
        ("arXiv 2503.17547", "model site data width k tokens batch_size context_length aux_k normalization"),
        ("dictionary_learning, which trained it", "initialisation constraint pre_bias clip_norm"),
        ("SAEBench, same model and site", "harvest_batch_size buffer_tokens"),
    )
    return Preset("matryoshka-gemma2", (recipe,), sources, settings)


@published
def gemma_scope() -> Preset:
    """Gemma Scope (arXiv 2408.05147), which follows arXiv 2407.14435: JumpReLU with a penalty on the L0.

    Window and first threshold 0.001 at mean square norm 1, Adam (0, 0.999) at 7e-5, cosine warm-up from a tenth over
    1,000 steps, penalty warm-up over 10,000. The released sweeps are not tabulated; the coefficients are those that
    arXiv 2412.06410 used on the same model.
    """
    recipe = Recipe(
        "gemma-scope",
        "jumprelu",
        penalties=(L0(),),
        sparsity="coefficient",
        grid=(0.001, 0.005, 0.02),
        aux_k=None,
        reconstruction="squared",
        betas=(0.0, 0.999),
        clip_norm=None,
        initialisation=PLAIN,
        timing=Timing(Span(1000, 0.1), warm_up_from=0.1, cosine=True, decay=0.0, sparsity_warm_up=Span(10_000, 0.25)),
        learning_rate=7e-5,
    )
    settings = {
        "model": "google/gemma-2-2b",
        "site": "layers.12.resid_post",
        "width": (16384,),
        "tokens": 4_000_000_000,
        "batch_size": 4096,
        "context_length": 1024,
        "harvest_batch_size": 4,
        "buffer_tokens": 1_000_000,
    }
    sources = stated(
        ("arXiv 2408.05147", "model site width tokens batch_size context_length buffer_tokens normalization pre_bias"),
        ("arXiv 2408.05147", "selection sparsity penalties reconstruction aux_k betas epsilon learning_rate timing"),
        ("arXiv 2407.14435", "jump constraint initialisation clip_norm optimizer"),
        ("arXiv 2412.06410, JumpReLU on the same model", "grid"),
        ("SAEBench, same model", "harvest_batch_size"),
    )
    return Preset("gemma-scope", (recipe,), sources, settings)


@published
def anthropic_april24() -> Preset:
    """Anthropic's update of April 2024, "How we train SAEs": L1 weighted by decoder norms, free rows, λ = 5.

    Inputs of mean norm √d; penalty warm-up over the first 5 % and decay over the last 20 % of 200,000 steps.
    The numbers are quoted from memory: look them up before a comparison rests on them.
    """
    recipe = Recipe(
        "anthropic-april24",
        "relu",
        penalties=(L1(norms="joint"),),
        sparsity="coefficient",
        grid=(5.0,),
        aux_k=None,
        reconstruction="squared",
        constraint="free",
        pre_bias=False,
        normalization="sqrt_d",
        initialisation=Initialisation(row_norm=0.1, scale="none", b_dec="zero"),
        timing=Timing(warm_up=Span(0, 0.0), sparsity_warm_up=Span(None, 0.05)),
        learning_rate=5e-5,
    )
    sources = stated(
        (
            "Anthropic, April 2024",
            "selection sparsity penalties grid aux_k reconstruction constraint pre_bias clip_norm",
        ),
        (
            "Anthropic, April 2024",
            "normalization initialisation timing learning_rate betas tokens batch_size optimizer",
        ),
    )
    return Preset("anthropic-april24", (recipe,), sources, {"tokens": 409_600_000, "batch_size": 2048})


@published
def anthropic_jan25() -> Preset:
    """Anthropic's update of January 2025 on JumpReLU: tanh penalty, pre-activation penalty, jumps train everything.

    Inputs of mean norm √d, window 2, first threshold 0.1, penalty warm-up over the whole run, decay over the last 20 %:
    as SAELens' issues 427 and 541 report them.
    """
    recipe = Recipe(
        "anthropic-jan25",
        "jumprelu",
        penalties=(Tanh(scale=4.0), PreAct(coefficient=3e-6)),
        sparsity="coefficient",
        grid=(10.0, 20.0),
        aux_k=None,
        reconstruction="squared",
        constraint="free",
        pre_bias=False,
        normalization="sqrt_d",
        jump=Jump(bandwidth=2.0, threshold=0.1, everywhere=True),
        initialisation=Initialisation(weights="uniform", scale="none", b_dec="zero", b_enc="frequent"),
        timing=Timing(warm_up=Span(0, 0.0), sparsity_warm_up=Span(None, 1.0)),
    )
    sources = stated(
        ("Anthropic, January 2025", "selection sparsity penalties grid aux_k reconstruction constraint pre_bias jump"),
        ("Anthropic, January 2025", "normalization initialisation timing optimizer"),
    )
    return Preset("anthropic-jan25", (recipe,), sources)


@published
def openai_topk() -> Preset:
    """The released GPT-2 dictionaries of arXiv 2406.04093 and their code: TopK 32 on layer-normed tokens.

    Encoder rescaled on the first batch, AuxK with 512 latents, Adam 1e-4 with ε 6.25e-10, a moving average of the
    weights, batches of 131,072 tokens in contexts of 64.
    """
    recipe = Recipe(
        "openai-topk",
        "topk",
        aux_k=AuxK(k=512),
        epsilon=6.25e-10,
        normalization="none",
        input_op="layer_norm",
        timing=CONSTANT,
        weight_average=0.999,
        learning_rate=1e-4,
    )
    settings = {
        "model": "gpt2",
        "site": "layers.8.resid_post",
        "data": OPEN_WEB_TEXT,
        "width": (32768,),
        "k": (32,),
        "batch_size": 131_072,
        "context_length": 64,
        "buffer_tokens": 1_048_576,
    }
    sources = stated(
        ("arXiv 2406.04093", "selection sparsity aux_k initialisation constraint pre_bias reconstruction optimizer"),
        ("arXiv 2406.04093", "batch_size context_length width k input_op normalization dead_after"),
        ("its code and released files", "model site data epsilon timing weight_average learning_rate clip_norm"),
        ("saeworks: eight batches", "buffer_tokens"),
    )
    return Preset("openai-topk", (recipe,), sources, settings)


@published
def sparsify() -> Preset:
    """The defaults of EleutherAI's sparsify: TopK 32, errors over the variance, no AuxK, sign descent averaged.

    Its width is 32 times that of the input: give ``--width``. It does not shuffle tokens; here they are.
    """
    recipe = Recipe(
        "sparsify",
        "topk",
        aux_k=None,
        clip_norm=None,
        normalization="none",
        initialisation=Initialisation(scale="none", b_dec="mean"),
        timing=CONSTANT,
        optimizer="signum",
        learning_rate=5e-3,
        by_width=True,
    )
    sources = stated(
        ("sparsify", "selection sparsity aux_k clip_norm normalization initialisation timing optimizer learning_rate"),
        ("sparsify", "by_width reconstruction constraint pre_bias k context_length batch_size dead_after"),
        ("saeworks: two batches", "buffer_tokens"),
    )
    settings = {"k": (32,), "context_length": 2048, "batch_size": 65_536, "buffer_tokens": 131_072}
    return Preset("sparsify", (recipe,), sources, settings)


@published
def crosscoder_chat() -> Preset:
    """The L1 crosscoder of arXiv 2504.02922 (base against chat model): norm of the error, not squared; μ = 0.041.

    Its width is 32 times that of one model; rows begin with norm 0.005.
    """
    recipe = replace(
        RECIPES["crosscoder_l1"],
        name="crosscoder-chat",
        grid=(4.1e-2,),
        reconstruction="norm",
        initialisation=Initialisation(row_norm=0.005, scale="none", b_dec="zero"),
        learning_rate=1e-4,
    )
    sources = stated(
        ("arXiv 2504.02922", "inputs selection sparsity penalties grid learning_rate batch_size"),
        ("dictionary_learning, the fork for crosscoders", "reconstruction initialisation constraint pre_bias aux_k"),
    )
    return Preset("crosscoder-chat", (recipe,), sources, {"batch_size": 2048})
