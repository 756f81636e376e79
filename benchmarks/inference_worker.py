"""One library with one dictionary: the part of benchmarks/inference.py that runs in that library's environment.

    PYTHON inference_worker.py LIBRARY FOLDER THREADS

FOLDER/LIBRARY is the dictionary, FOLDER/x.pt the tokens. Every line on standard input names what is to be done once; it
is answered with its seconds, or null. When the input ends, FOLDER/LIBRARY.out.pt gets the reconstruction.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Calls = tuple[Callable[[], Any], Callable[[Any, Tensor], Any], Callable[[Any, Tensor], Tensor]]


def ours(path: Path) -> Calls:
    import saeworks

    return (lambda: saeworks.load(path), lambda d, x: d.encode(x), lambda d, x: d(x))


def saelens(path: Path) -> Calls:
    from sae_lens import SAE

    return (lambda: SAE.load_from_disk(path, device="cpu"), lambda d, x: d.encode(x), lambda d, x: d(x))


def dictionary_learning(path: Path) -> Calls:
    from dictionary_learning.utils import load_dictionary

    return (lambda: load_dictionary(str(path), "cpu")[0], lambda d, x: d.encode(x), lambda d, x: d(x))


def sparsify(path: Path) -> Calls:
    from sparsify.sparse_coder import SparseCoder

    return (lambda: SparseCoder.load_from_disk(path), lambda d, x: d.encode(x), lambda d, x: d(x).sae_out)


def main() -> None:
    library, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    x = torch.load(folder / "x.pt", weights_only=True)
    kinds = {"ours": ours, "saelens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}
    load, encode, forward = kinds[library](folder / library)
    loaded = load()
    does: dict[str, Callable[[], Any]] = {
        "load": load,
        "encode": lambda: encode(loaded, x),
        "forward": lambda: forward(loaded, x),
    }
    if library == "ours":
        does["sparse"] = lambda: loaded.encode_sparse(x)
    with torch.no_grad():
        for what in map(str.strip, sys.stdin):
            if what not in does:
                print("ANSWER null", flush=True)
                continue
            started = time.perf_counter()
            does[what]()
            print("ANSWER " + json.dumps(time.perf_counter() - started), flush=True)
        torch.save(forward(loaded, x), folder / f"{library}.out.pt")


if __name__ == "__main__":
    main()
