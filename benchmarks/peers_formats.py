"""Formats against the libraries they belong to: ours → loaded there → compared, and theirs → loaded here → compared.

    sh benchmarks/peers.sh DIRECTORY
    python benchmarks/peers_formats.py --peers DIRECTORY

Every library runs in its own environment (benchmarks/peer_side.py), with its own loader and its own arithmetic, on the
same tokens at a tenth, once and ten times unit scale. Printed is the largest difference of reconstructions and of
latents, relative to the largest value. SAELens reads Gemma Scope and Llama Scope with its own converters. SAEBench is
given our object and its own with the same weights, and its core eval runs on both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_side import D, K, N

import saeworks
from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.dictionaries.folding import fold_decoder_norm
from saeworks.dictionaries.formats import save
from saeworks.results.tables import markdown

PEERS = ("saelens", "dictionary_learning", "sparsify", "saebench")
Settings = dict[str, Any]
# By library: the dictionaries that are written in its own format.
OWN: dict[str, dict[str, Settings]] = {
    "saelens": {
        "relu": {"architecture": "relu"},
        "relu no pre-bias": {"architecture": "relu", "pre_bias": False},
        "relu layer_norm": {"architecture": "relu", "input_op": "layer_norm"},
        "relu constant_norm": {"architecture": "relu", "input_op": "constant_norm"},
        "jumprelu": {"architecture": "jumprelu"},
        "topk": {"architecture": "topk"},
        "topk norm-weighted": {"architecture": "topk", "norm_weighted": True},
        "transcoder": {"architecture": "relu", "d_out": D},
        "transcoder skip": {"architecture": "relu", "d_out": D, "skip": True},
        "transcoder jumprelu": {"architecture": "jumprelu", "d_out": D},
        "transcoder jumprelu skip": {"architecture": "jumprelu", "d_out": D, "skip": True},
    },
    "dictionary_learning": {
        "relu": {"architecture": "relu"},
        "relu no pre-bias": {"architecture": "relu", "pre_bias": False},
        "jumprelu": {"architecture": "jumprelu"},
        "topk": {"architecture": "topk"},
        "matryoshka": {"architecture": "jumprelu", "unit": True, "groups": [48, 144]},
    },
    "sparsify": {
        "topk": {"architecture": "topk"},
        "topk norm-weighted": {"architecture": "topk", "norm_weighted": True},
        "groupmax": {"architecture": "groupmax"},
        "transcoder": {"architecture": "topk", "d_out": D},
        "transcoder skip": {"architecture": "topk", "d_out": D, "skip": True},
    },
    "saebench": {
        "relu": {"architecture": "relu"},
        "jumprelu": {"architecture": "jumprelu", "pre_bias": False},
        "topk": {"architecture": "topk", "unit": True},
    },
}
# Read by SAELens's converters: settings, format, and the folder they take facts from.
FOREIGN: dict[str, tuple[Settings, str, str]] = {
    "gemma_scope-jumprelu": ({"architecture": "jumprelu"}, "gemma_scope", "layer_3/width_1k/average_l0_9"),
    "gemma_scope_2-jumprelu": ({"architecture": "jumprelu"}, "gemma_scope_2", "resid_post/layer_3_width_1k"),
    "gemma_scope_2-transcoder": (
        {"architecture": "jumprelu", "d_out": D, "skip": True},
        "gemma_scope_2",
        "transcoder/layer_3_width_1k_affine",
    ),
    "llama_scope-jumprelu": ({"architecture": "jumprelu", "unit": True, "pre_bias": False}, "llama_scope", "L3R"),
}


def made(seed: int, settings: Settings) -> Dictionary:
    """A random dictionary; ``unit`` in the settings gives it rows of norm 1 and one threshold."""
    g = torch.Generator().manual_seed(seed)
    rest = dict(settings)
    unit, groups, d_out = rest.pop("unit", False), rest.pop("groups", None), rest.get("d_out")
    pre_bias, architecture = rest.pop("pre_bias", d_out is None), str(rest["architecture"])
    W_dec = torch.randn(N, d_out or D, generator=g) * (torch.rand(N, 1, generator=g) + 0.3)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True) if unit else W_dec
    about: Settings = {"model_name": "openai-community/gpt2", "site": "layers.3.resid_post", "context_length": 128}
    about |= {"group_sizes": groups, "k": K} if groups else {}
    k = K if architecture in ("topk", "groupmax") else None
    sizes = {"d_in": D, "d_sae": N, "k": k, "apply_b_dec_to_input": pre_bias, "metadata": about}
    threshold = torch.full((N,), 0.4) if unit else torch.rand(N, generator=g)
    return Dictionary(
        DictionaryConfig.model_validate({**sizes, **rest}),
        W_enc=torch.randn(D, N, generator=g) / D**0.5,
        W_dec=W_dec,
        b_enc=torch.randn(N, generator=g) * 0.2,
        b_dec=torch.randn(d_out or D, generator=g) * 0.3,
        threshold=threshold if architecture == "jumprelu" else None,
        W_skip=torch.randn(D, D, generator=g) / D**0.5 if rest.get("skip") else None,
    )


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference relative to the largest value."""
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30))


def compared(dictionary: Dictionary, x: torch.Tensor, file: Path) -> dict[str, float]:
    """What a library computed, beside what we compute."""
    with np.load(file) as theirs, torch.no_grad():
        return {
            "reconstruction": difference(dictionary(x).numpy(), theirs["out"]),
            "latents": difference(dictionary.encode(x).numpy(), theirs["latents"]),
        }


def run(peer: str, python: Path, folder: Path) -> list[dict[str, object]]:
    """Both directions for one library; one row per dictionary."""
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(1))
    x = torch.cat([0.1 * x, x, 10 * x])
    np.savez(folder / "x.npz", x=x.numpy())
    ours: dict[str, Dictionary] = {}
    own = {name: (settings, "saeworks" if peer == "saebench" else peer, "") for name, settings in OWN[peer].items()}
    for seed, (name, (settings, written, inside)) in enumerate(
        {**own, **(FOREIGN if peer == "saelens" else {})}.items()
    ):
        ours[name] = made(seed, settings)
        save(ours[name], folder / "ours" / name / inside, written)
    source = str(Path(saeworks.__file__).parents[1])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if peer == "saebench":
        environment["PYTHONPATH"] = source
    else:
        environment.pop("PYTHONPATH", None)
    side = Path(__file__).with_name("peer_side.py")
    done = subprocess.run([python, side, peer, folder], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{peer} failed:\n{done.stderr[-3000:]}")
    rows: list[dict[str, object]] = []
    for name, dictionary in ours.items():
        # Norm-weighted latents, and all of SAEBench's, come out multiplied by the norms of their rows.
        weighted = dictionary.cfg.norm_weighted or peer == "saebench" or (peer, name) == ("dictionary_learning", "relu")
        numbers = compared(
            fold_decoder_norm(dictionary) if weighted else dictionary, x, folder / "read" / f"{name}.npz"
        )
        rows.append({"library": peer, "direction": "ours read there", "dictionary": name, **numbers})
    for path in sorted((folder / "theirs").iterdir()) if (folder / "theirs").is_dir() else []:
        found = saeworks.load(path)
        numbers = compared(found, x, folder / "wrote" / f"{path.name}.npz")
        rows.append({"library": peer, "direction": "theirs read here", "dictionary": path.name, **numbers})
    if peer == "saebench":
        rows += beside(folder)
    return rows


def beside(folder: Path) -> list[dict[str, object]]:
    """SAEBench's core eval on our objects and on its own with the same weights."""
    rows: list[dict[str, object]] = []
    for name, found in json.loads((folder / "core.json").read_text()).items():
        ours, theirs = found["ours"], found["theirs"]
        assert set(ours) == set(theirs)
        numbers = [(ours[key], theirs[key]) for key in ours if theirs[key] == theirs[key]]
        worst = max(abs(a - b) / max(abs(b), 1e-6) for a, b in numbers)
        rows.append({"library": "saebench", "direction": f"core eval, {len(ours)} numbers", "dictionary": name})
        rows[-1] |= {"reconstruction": worst, "latents": None}
    return rows


def main() -> None:
    """Run the libraries that are there, print one table, and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="directory with one environment per library")
    parser.add_argument("--only", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for peer in options.only:
        python = options.peers / peer / "bin" / "python"
        if not python.exists():
            print(f"{peer}: no environment in {options.peers}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows += run(peer, python, Path(folder))
    shown = [[f"{v:.1e}" if isinstance(v, float) else str(v or "") for v in row.values()] for row in rows]
    print(markdown(["library", "direction", "dictionary", "reconstruction", "latents"], shown))
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
