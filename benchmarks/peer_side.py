"""The part of benchmarks/peers_formats.py that runs in the environment of another library. It imports no saeworks,
except for SAEBench, which is given our object.

    PEER_PYTHON peer_side.py PEER FOLDER

FOLDER/x.npz holds the tokens. Every folder below FOLDER/ours is loaded with the library's own loader, and its
reconstruction and latents go to FOLDER/read/NAME.npz. The library's own dictionaries, with random weights, are written
to FOLDER/theirs/NAME, and what they compute to FOLDER/wrote/NAME.npz.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

D, N, K = 48, 192, 12


def randomise(module: torch.nn.Module, seed: int, positive: tuple[str, ...] = ("threshold",)) -> torch.nn.Module:
    """Random parameters of moderate size, decoder rows of unequal norm."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            drawn = torch.randn(value.shape, generator=rng) * (0.4 if value.dim() == 1 else 1 / value.shape[-1] ** 0.5)
            value.copy_(drawn.abs() if name in positive else drawn)
    return module


def keep(folder: Path, name: str, module: object, x: torch.Tensor, latents: torch.Tensor | None = None) -> None:
    """Write what ``module`` computes on ``x``; ``latents`` stand in for those of its ``encode``."""
    with torch.no_grad():
        out = module(x)
        latents = module.encode(x) if latents is None else latents.detach()
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", out=out.float().numpy(), latents=latents.float().numpy())


def saelens(folder: Path, x: torch.Tensor) -> None:
    from sae_lens import SAE
    from sae_lens.saes import batchtopk_sae, gated_sae, jumprelu_sae, standard_sae, topk_sae, transcoder
    from sae_lens.saes.sae import SAEMetadata

    for path in sorted((folder / "ours").iterdir()):
        loaded = SAE.load_from_disk(path, device="cpu") if (path / "cfg.json").exists() else saelens_foreign(path)
        keep(folder / "read", path.name, loaded, x)
    about = {"model_name": "gpt2-small", "hook_name": "blocks.5.hook_resid_post"}
    common = {"d_in": D, "d_sae": N}
    out = {**common, "d_out": D, "apply_b_dec_to_input": False}
    kinds = {
        "standard": (standard_sae.StandardSAE, standard_sae.StandardSAEConfig(**common)),
        "standard_no_pre_bias": (
            standard_sae.StandardSAE,
            standard_sae.StandardSAEConfig(**common, apply_b_dec_to_input=False),
        ),
        "standard_layer_norm": (
            standard_sae.StandardSAE,
            standard_sae.StandardSAEConfig(**common, normalize_activations="layer_norm"),
        ),
        "standard_constant_norm": (
            standard_sae.StandardSAE,
            standard_sae.StandardSAEConfig(**common, normalize_activations="constant_norm_rescale"),
        ),
        "gated": (gated_sae.GatedSAE, gated_sae.GatedSAEConfig(**common)),
        "jumprelu": (jumprelu_sae.JumpReLUSAE, jumprelu_sae.JumpReLUSAEConfig(**common)),
        "topk": (topk_sae.TopKSAE, topk_sae.TopKSAEConfig(**common, k=K)),
        "topk_weighted": (
            topk_sae.TopKSAE,
            topk_sae.TopKSAEConfig(**common, k=K, rescale_acts_by_decoder_norm=True),
        ),
        "transcoder": (transcoder.Transcoder, transcoder.TranscoderConfig(**out)),
        "skip_transcoder": (transcoder.SkipTranscoder, transcoder.SkipTranscoderConfig(**out)),
        "jumprelu_transcoder": (transcoder.JumpReLUTranscoder, transcoder.JumpReLUTranscoderConfig(**out)),
        "jumprelu_skip_transcoder": (
            transcoder.JumpReLUSkipTranscoder,
            transcoder.JumpReLUSkipTranscoderConfig(**out),
        ),
    }
    for seed, (name, (kind, cfg)) in enumerate(kinds.items()):
        cfg.metadata = SAEMetadata(**about)
        made = randomise(kind(cfg), seed)
        made.save_model(folder / "theirs" / name)
        keep(folder / "wrote", name, made, x)
    cfg = batchtopk_sae.BatchTopKTrainingSAEConfig(**common, k=K)
    trained = randomise(batchtopk_sae.BatchTopKTrainingSAE(cfg), 99)
    trained.topk_threshold = torch.tensor(0.6, dtype=torch.double)
    trained.save_inference_model(folder / "theirs" / "batchtopk_inference")
    keep(folder / "wrote", "batchtopk_inference", SAE.load_from_disk(folder / "theirs" / "batchtopk_inference"), x)


def saelens_foreign(path: Path) -> torch.nn.Module:
    """Other publishers' layouts, read with SAELens's own converters from a folder instead of the hub."""
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.saes.sae import SAE
    from safetensors import safe_open

    marks = ("params.npz", "params.safetensors", "hyperparams.json")
    inner = next(file.parent for file in path.rglob("*") if file.name in marks)
    name = inner.relative_to(path).as_posix()
    loaders.hf_hub_download = lambda repo_id, filename, subfolder=None, **_: str(path / (subfolder or "") / filename)

    def shapes(_repo: str, filename: str) -> dict[str, list[int]]:
        with safe_open(path / filename, "pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118

    loaders.get_safetensors_tensor_shapes = shapes
    repo, load = {
        "gemma_scope": ("google/gemma-scope-2b-pt-res", loaders.gemma_2_sae_huggingface_loader),
        "gemma_scope_2": ("google/gemma-scope-2-1b-pt", loaders.gemma_3_sae_huggingface_loader),
        "llama_scope": ("fnlp/Llama3_1-8B-Base-LXR-8x", loaders.llama_scope_sae_huggingface_loader),
    }[path.name.split("-")[0]]
    # Widths are read off the names of releases there, and some types are narrower than what was published.
    cfg, state, _ = load(repo, name, "cpu", cfg_overrides={"dtype": "float32", "d_in": D, "d_sae": N})
    cfg = loaders.handle_config_defaulting(cfg)
    made = SAE.from_dict(cfg)
    made.load_state_dict({key: value.float() for key, value in state.items()})
    return made


def dictionary_learning(folder: Path, x: torch.Tensor) -> None:
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k
    from dictionary_learning.utils import load_dictionary

    for path in sorted((folder / "ours").iterdir()):
        loaded, _ = load_dictionary(str(path), "cpu")
        keep(folder / "read", path.name, loaded, x)
    kinds = {
        "AutoEncoder": dictionary.AutoEncoder(D, N),
        "AutoEncoderNew": dictionary.AutoEncoderNew(D, N),
        "GatedAutoEncoder": dictionary.GatedAutoEncoder(D, N),
        "JumpReluAutoEncoder": dictionary.JumpReluAutoEncoder(D, N),
        "AutoEncoderTopK": top_k.AutoEncoderTopK(D, N, K),
        "BatchTopKSAE": batch_top_k.BatchTopKSAE(D, N, K),
        "MatryoshkaBatchTopKSAE": matryoshka_batch_top_k.MatryoshkaBatchTopKSAE(D, N, K, [48, 144]),
    }
    for seed, (name, made) in enumerate(kinds.items()):
        randomise(made, seed)
        if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            made.threshold.fill_(0.6)
        path = folder / "theirs" / name
        path.mkdir(parents=True)
        torch.save(made.state_dict(), path / "ae.pt")
        trainer = {"dict_class": name, "lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_3"}
        trainer["k"] = K
        (path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
        # Latents in units of their directions, as its forward returns them, and as they are read here.
        weighted = made(x, output_features=True)[1] if name == "AutoEncoderNew" else None
        keep(folder / "wrote", name, made, x, weighted)


def sparsify(folder: Path, x: torch.Tensor) -> None:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    def run(coder: SparseCoder, where: str, name: str) -> None:
        with torch.no_grad():
            done = coder(x)
        latents = torch.zeros(len(x), coder.num_latents).scatter(1, done.latent_indices, done.latent_acts)
        (folder / where).mkdir(parents=True, exist_ok=True)
        np.savez(folder / where / f"{name}.npz", out=done.sae_out.numpy(), latents=latents.numpy())

    for path in sorted((folder / "ours").iterdir()):
        run(SparseCoder.load_from_disk(path), "read", path.name)
    for seed, (activation, transcode, skip) in enumerate(
        [("topk", False, False), ("topk", True, False), ("topk", True, True), ("groupmax", False, False)]
    ):
        size = {"num_latents": N, "k": K, "normalize_decoder": False}
        cfg = SparseCoderConfig(activation=activation, transcode=transcode, skip_connection=skip, **size)
        made = randomise(SparseCoder(D, cfg), seed)
        name = f"{activation}{'_transcoder' * transcode}{'_skip' * skip}"
        made.save_to_disk(folder / "theirs" / name)
        run(made, "wrote", name)


def saebench(folder: Path, x: torch.Tensor) -> None:
    """Our objects beside SAEBench's own with the same weights, through its core eval on a small random model."""
    from sae_bench.custom_saes import jumprelu_sae, relu_sae, topk_sae
    from sae_bench.evals.core import main as core
    from sae_bench.sae_bench_utils import general_utils
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    import saeworks
    from saeworks.dictionaries.formats.saebench import for_saebench

    settings = {"n_layers": 2, "d_model": D, "n_ctx": 32, "d_head": 12, "n_heads": 4, "d_vocab": 60, "seed": 0}
    model = HookedTransformer(HookedTransformerConfig(**settings, act_fn="gelu", device="cpu"))
    found: dict[str, object] = {}
    for path in sorted((folder / "ours").iterdir()):
        ours = for_saebench(saeworks.load(path), "tiny", "blocks.1.hook_resid_post")
        place = {"d_in": D, "d_sae": N, "model_name": "tiny", "hook_layer": 1}
        place |= {"device": torch.device("cpu"), "dtype": torch.float32}
        if path.name == "topk":
            theirs = topk_sae.TopKSAE(k=K, **place)
        else:
            theirs = (jumprelu_sae.JumpReluSAE if path.name == "jumprelu" else relu_sae.ReluSAE)(**place)
        with torch.no_grad():
            for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
                if hasattr(theirs, name) and getattr(ours.dictionary, name) is not None:
                    getattr(theirs, name).copy_(getattr(ours.dictionary, name))
        keep(folder / "read", path.name, ours, x)
        keep(folder / "wrote", path.name, theirs, x)
        found[path.name] = {}
        for who, sae in (("ours", ours), ("theirs", theirs)):
            _, sae, _ = general_utils.load_and_format_sae("custom", sae, "cpu")
            sae = sae.to(device="cpu", dtype=torch.float32)
            found[path.name][who] = core_numbers(core, sae, model)
    (folder / "core.json").write_text(json.dumps(found))


def core_numbers(core: object, sae: object, model: object) -> dict[str, float]:
    """The numbers of SAEBench's core eval: reconstruction, sparsity, variance, and those of the weights."""
    rng = torch.Generator().manual_seed(0)

    class Store:
        exclude_special_tokens = None
        context_size = 32

        def reset_input_dataset(self) -> None:
            rng.manual_seed(0)

        def get_batch_tokens(self, *_: object) -> torch.Tensor:
            return torch.randint(0, 60, (4, 32), generator=rng)

        def apply_norm_scaling_factor(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def unscale(self, x: torch.Tensor) -> torch.Tensor:
            return x

    from sae_bench.evals.core.eval_config import CoreEvalConfig

    config = CoreEvalConfig(model_name="tiny", batch_size_prompts=4, n_eval_reconstruction_batches=4)
    config.n_eval_sparsity_variance_batches = 4
    for name in ("kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics"):
        setattr(config, f"compute_{name}", True)
    metrics, _ = core.run_evals(sae=sae, activation_store=Store(), model=model, eval_config=config, verbose=False)
    flat = {f"{group}.{key}": value for group, row in metrics.items() for key, value in row.items()}
    weights = core.get_featurewise_weight_based_metrics(sae)
    flat |= {f"weights.{key}": float(np.mean(value)) for key, value in weights.items() if isinstance(value, list)}
    return {key: float(value) for key, value in flat.items() if isinstance(value, (int, float))}


if __name__ == "__main__":
    where = Path(sys.argv[2])
    tokens = torch.from_numpy(np.load(where / "x.npz")["x"])
    torch.set_num_threads(1)
    {"saelens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify, "saebench": saebench}[
        sys.argv[1]
    ](where, tokens)
