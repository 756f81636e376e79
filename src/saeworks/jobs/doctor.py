"""What this installation can do: versions, devices, room, extras, the embedded model, speed of a matrix product."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saeworks.version import __version__

# extra → (module that is imported, distribution it comes from, what it is for)
EXTRAS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "hf": (
        ("transformers", "transformers", "language models"),
        ("datasets", "datasets", "texts from a hub"),
        ("pyarrow", "pyarrow", "parquet files"),
    ),
    "plot": (("matplotlib", "matplotlib", "figures of the report"),),
    "probe": (("scipy", "scipy", "matching of latents with known directions"),),
}
# The main job cannot do without these; what else is missing gives advice only.
NEEDED = ("hf", "plot")

Check = dict[str, Any]


def doctor() -> dict[str, Any]:
    """Examine the installation.

    Returns ``{"saeworks", "healthy", "checks": [{"check", "found", "ok", "advice"}], "facts": {...}}``. ``healthy`` is
    True when the main job can run here; a missing optional thing gives advice, not illness.
    """
    facts: dict[str, Any] = {}
    checks = [_python(facts), _torch(facts), *_extras(facts), *_devices(facts), _memory(facts), _disk(facts)]
    if all(check["ok"] for check in checks):
        checks += [_embedded_model(facts), _speed(facts)]
    return {
        "saeworks": __version__,
        "healthy": all(check["ok"] for check in checks),
        "checks": checks,
        "facts": facts,
    }


def free_memory() -> int | None:
    """Bytes of memory that can be had without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return int(os.sysconf("SC_AVPHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, AttributeError):
        return None


def free_disk(path: Path) -> int:
    """Bytes free on the file system that holds ``path`` (or its nearest existing parent)."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def gemm_gflops(seconds: float = 0.5, device: str = "cpu") -> float:
    """Speed of a float32 matrix product of the encoder's shape ``[1024, 256] @ [256, 2048]`` in GFLOP/s."""
    import torch

    a, b = torch.randn(1024, 256, device=device), torch.randn(256, 2048, device=device)
    _synchronised(device, lambda: a @ b)
    rounds, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        _synchronised(device, lambda: a @ b)
        rounds += 1
    return 2 * 1024 * 256 * 2048 * rounds / elapsed / 1e9


def _synchronised(device: str, work: Callable[[], object]) -> None:
    import torch

    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _check(name: str, found: str, ok: bool = True, advice: str = "") -> Check:
    return {"check": name, "found": found, "ok": ok, "advice": advice}


def _python(facts: dict[str, Any]) -> Check:
    facts["python"] = platform.python_version()
    ok = sys.version_info >= (3, 11)
    return _check("python", facts["python"], ok, "" if ok else "Install Python 3.11 or newer.")


def _torch(facts: dict[str, Any]) -> Check:
    try:
        import torch
    except Exception as e:  # a broken build fails with errors of many kinds
        return _check("torch", f"{type(e).__name__}: {e}", False, "pip install torch")
    facts["torch"], facts["threads"] = torch.__version__, torch.get_num_threads()
    return _check("torch", f"{torch.__version__}, {facts['threads']} threads of {os.cpu_count()} processors")


def _extras(facts: dict[str, Any]) -> list[Check]:
    checks: list[Check] = []
    for extra, parts in EXTRAS.items():
        missing = [(module, use) for module, _, use in parts if find_spec(module) is None]
        versions = [f"{name} {metadata.version(name)}" for module, name, _ in parts if find_spec(module) is not None]
        facts.setdefault("extras", {})[extra] = not missing
        found = ", ".join(versions + [f"no {module} ({use})" for module, use in missing])
        advice = f'pip install "saeworks[{extra}]"' if missing else ""
        checks.append(_check(f"extra [{extra}]", found, not missing or extra not in NEEDED, advice))
    return checks


def _devices(facts: dict[str, Any]) -> list[Check]:
    if "torch" not in facts:
        return []
    import torch

    names = ["cpu"] + [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    facts["devices"] = names
    return [_check("devices", ", ".join(names))]


def _memory(facts: dict[str, Any]) -> Check:
    free = free_memory()
    facts["free_memory_bytes"] = free
    if free is None:
        return _check("free memory", "unknown")
    ok = free > 1.5e9
    return _check("free memory", f"{free / 1e9:.1f} GB", ok, "" if ok else "The main job needs about 1.5 GB.")


def _disk(facts: dict[str, Any]) -> Check:
    free = free_disk(Path.cwd())
    facts["free_disk_bytes"] = free
    ok = free > 0.5e9
    return _check("free disk here", f"{free / 1e9:.1f} GB", ok, "" if ok else "The main job needs about 0.5 GB.")


def _embedded_model(facts: dict[str, Any]) -> Check:
    from saeworks.models.language_model import load_language_model

    try:
        model = load_language_model("world", device="cpu")
        batch = model.tokenize(["The dog is a mammal."], 16)
        logits = model.logits(batch)
    except Exception as e:  # whatever is wrong with it belongs into the report
        facts["embedded_model"] = False
        return _check("embedded model", f"{type(e).__name__}: {e}", False, "pip install --force-reinstall saeworks")
    facts["embedded_model"] = True
    found = f"{model.n_layers} layers, width {model.d_model}, {logits.shape[-1]:,} tokens in the vocabulary"
    return _check("embedded model", found)


def _speed(facts: dict[str, Any]) -> Check:
    from saeworks.runtime import resolve_device

    device = str(resolve_device("auto"))
    facts["gflops"] = round(gemm_gflops(device=device), 1)
    return _check("matrix product", f"{facts['gflops']:.0f} GFLOP/s in float32 on {device}")
