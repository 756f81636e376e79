"""Files that strangers wrote: whatever is wrong with them is a sentence, and nothing inside them is ever run."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import saeworks
from saeworks.dictionaries.formats import reading
from saeworks.errors import InputError


class Evil:
    """Unpickling this makes the directory ``done``."""

    def __init__(self, done: Path, by: str = "reduce") -> None:
        self.done, self.by = done, by

    def __reduce__(self):
        return os.mkdir, (str(self.done),)


def archive(path: Path, files: dict[str, bytes], packed: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return path


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as found:
        return {item.filename: found.read(item) for item in found.infolist()}


def torch_file(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


LINEAR = {"encoder.weight": torch.randn(8, 4), "decoder.weight": torch.randn(4, 8), "bias": torch.zeros(4)}


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_pickle_that_would_run_something_runs_nothing(tmp_path: Path, protocol: int) -> None:
    done = tmp_path / "done"
    plain = contents(torch_file(tmp_path / "plain.pt", LINEAR))
    evil = pickle.dumps({**dict.fromkeys(LINEAR, 0), "x": Evil(done)}, protocol=protocol)
    named = {name: evil if name.endswith("data.pkl") else data for name, data in plain.items()}
    path = archive(tmp_path / "ae.pt", named)
    with pytest.raises(InputError, match="asks to import"):
        saeworks.load(tmp_path)
    with pytest.raises(InputError, match="asks to import"):
        reading.read_torch(path)
    assert not done.exists()


def test_a_bare_pickle_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Evil(tmp_path / "done")))
    with pytest.raises(InputError, match="bare pickle"):
        saeworks.load(tmp_path)
    assert not (tmp_path / "done").exists()


def test_an_archive_with_two_lists_of_names_is_refused(tmp_path: Path) -> None:
    plain = contents(torch_file(tmp_path / "plain.pt", LINEAR))
    path = archive(tmp_path / "ae.pt", {**plain, "other/data.pkl": pickle.dumps(Evil(tmp_path / "done"))})
    with pytest.raises(InputError, match=r"no 'data\.pkl' of reasonable size"):
        reading.read_torch(path)


@pytest.mark.parametrize("name", ["../evil.npy", "/etc/evil.npy", "a/../../evil.npy", "..\\evil.npy", "C:/evil.npy"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path: Path, name: str) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    with pytest.raises(InputError, match="leads out of its folder"):
        reading.read_npz(archive(tmp_path / "params.npz", {name: array.getvalue()}))
    plain = contents(torch_file(tmp_path / "plain.pt", LINEAR))
    with pytest.raises(InputError, match="leads out of its folder"):
        reading.read_torch(archive(tmp_path / "ae.pt", {**plain, name: b""}))


def test_a_link_that_leads_out_of_the_folder_is_refused_and_one_of_a_hub_cache_is_not(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "cfg.json").symlink_to(secret)
    save_file({"W_enc": torch.zeros(2, 3)}, tmp_path / "sae" / "weights.safetensors")
    with pytest.raises(InputError, match="leads out of its folder"):
        saeworks.load(tmp_path / "sae")
    repository = tmp_path / "models--a--b"
    (repository / "snapshots" / "abc" / "sae").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1").write_text("{}")
    (repository / "snapshots" / "abc" / "sae" / "cfg.json").symlink_to(repository / "blobs" / "1")
    assert reading.inside(repository / "snapshots" / "abc" / "sae", "cfg.json") is not None


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros(40_000_000, dtype=np.float32))
    path = archive(tmp_path / "params.npz", {"W_enc.npy": array.getvalue()}, packed=True)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="would unpack to 160,000,128"):
        saeworks.load(tmp_path)
    plain = contents(torch_file(tmp_path / "plain.pt", {"encoder.weight": torch.zeros(300_000)}))
    with pytest.raises(InputError, match="is compressed"):
        reading.read_torch(archive(tmp_path / "ae.pt", plain, packed=True))


def test_a_shape_larger_than_its_data_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros((2, 3), dtype=np.float32))
    huge = array.getvalue().replace(b"(2, 3), }" + b" " * 10, b"(2, 30000000000), }")
    assert huge != array.getvalue()
    with pytest.raises(InputError, match=r"declares the shape \[2, 30000000000\]"):
        reading.read_npz(archive(tmp_path / "params.npz", {"W_enc.npy": huge}))
    count = 1000
    plain = contents(torch_file(tmp_path / "plain.pt", {"encoder.weight": torch.randn(count)}))
    for more in (count * 4, 1 << 30):
        named = {}
        for name, data in plain.items():
            old = b"M" + struct.pack("<H", count)
            named[name] = data.replace(old, b"J" + struct.pack("<i", more)) if name.endswith("data.pkl") else data
            assert not name.endswith("data.pkl") or named[name] != data
        with pytest.raises(InputError, match="declares tensors of"):
            reading.read_torch(archive(tmp_path / "ae.pt", named))


def test_arrays_of_python_objects_are_refused(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.array([Evil(tmp_path / "done")], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="pickled Python objects"):
        reading.read_npz(archive(tmp_path / "params.npz", {"W_enc.npy": array.getvalue()}))
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt"])
def test_truncated_files_are_sentences(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / f"params.{kind}"
    if kind == "npz":
        np.savez(path, W_enc=np.random.default_rng(0).normal(size=(20, 30)), b=np.zeros(3))
    elif kind == "safetensors":
        save_file({"W_enc": torch.randn(20, 30)}, path)
    else:
        torch.save({"W_enc": torch.randn(20, 30)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    with pytest.raises(InputError, match=r"truncated"):
        reading.read_weights(path)


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_flipped_bytes_are_sentences_or_numbers(tmp_path: Path, kind: str) -> None:
    """Whatever byte is wrong, nothing but an InputError may come out of reading."""
    path = tmp_path / f"params.{kind}"
    if kind == "npz":
        np.savez(path, W_enc=np.arange(12.0).reshape(3, 4))
    else:
        torch.save({"W_enc": torch.arange(12.0).reshape(3, 4)}, path)
    data, refused = path.read_bytes(), 0
    for place in range(0, len(data), 2):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            reading.read_weights(path)
        except InputError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("data", [b"", b"{", b"[1, 2]", b"\xff\xfe", b"nul", b"[" * 100_000])
def test_settings_that_are_no_object_are_sentences(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "cfg.json").write_bytes(data)
    with pytest.raises(InputError, match=r"not valid JSON|must hold a JSON object"):
        reading.read_settings(tmp_path / "cfg.json")


def test_settings_too_large_to_be_any_are_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "cfg.json", "wb") as f:
        f.truncate(reading.MOST_SETTINGS + 1)
    with pytest.raises(InputError, match="too many for settings"):
        reading.read_settings(tmp_path / "cfg.json")


def test_values_nested_without_end_are_refused(tmp_path: Path) -> None:
    value: list[object] = []
    for _ in range(40):
        value = [value]
    with pytest.raises(InputError, match="nests its values"):
        reading.read_torch(torch_file(tmp_path / "ae.pt", {"x": value}))


def test_lists_of_one_list_end(tmp_path: Path) -> None:
    value: list[object] = [torch.zeros(1)]
    for _ in range(30):
        value = [value, value]
    assert set(reading.peek(torch_file(tmp_path / "ae.pt", {"x": value}))) == {"x"}


def test_every_name_that_is_allowed_is_a_type_or_rebuilds_a_tensor() -> None:
    """The list is short and ends in nothing that could call or open something."""
    for name in reading._HARMLESS:
        module, _, attribute = name.partition(" ")
        assert module in ("collections", "torch", "torch._utils")
        assert attribute in ("OrderedDict", "Size", "device", "_rebuild_tensor_v2", "_rebuild_parameter") or (
            attribute.endswith("Storage") or isinstance(getattr(torch, attribute), torch.dtype)
        )


def test_what_torch_saves_asks_for_allowed_names_only(tmp_path: Path) -> None:
    """Every floating-point type, parameters, and the ordered dictionary of a module can be read back."""
    value = {str(t): torch.ones(2, dtype=t) for t in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
    value |= {"p": torch.nn.Parameter(torch.ones(3)), "nested": torch.nn.Linear(2, 2).state_dict(), "k": 4, "s": "TopK"}
    path = torch_file(tmp_path / "ae.pt", value)
    found = reading.read_torch(path)
    assert torch.equal(found["nested"]["weight"], value["nested"]["weight"])
    assert (found["k"], found["s"]) == (4, "TopK")
    code = contents(path)["ae/data.pkl"]
    assert {a for o, a, _ in pickletools.genops(code) if o.name == "GLOBAL"} <= reading._HARMLESS
    assert set(reading.peek(path)) == set(value)


_LIMITED = """
import resource, sys, torch
from saeworks.dictionaries.formats import reading
from saeworks.errors import InputError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
try:
    reading.read_weights(__import__("pathlib").Path(sys.argv[1]))
except InputError as e:
    print(e)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="address space is limited through /proc")
def test_a_declared_gigabyte_takes_no_gigabyte(tmp_path: Path) -> None:
    """With 300 MB to spare, a header that announces 8 GB is still answered by a sentence."""
    header = json.dumps({"W": {"dtype": "F32", "shape": [1 << 15, 1 << 16], "data_offsets": [0, 1 << 33]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    source = str(Path(saeworks.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert "truncated or damaged" in done.stdout, done.stderr
