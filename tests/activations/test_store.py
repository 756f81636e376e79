"""Stores on disk: round trip, kill and resume to the same bytes, and what is said of damage."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saeworks.activations import store_writing
from saeworks.activations.harvest import Harvester
from saeworks.activations.store import ActivationStore, write_store
from saeworks.activations.store_layout import MANIFEST, STATISTICS, UNFINISHED
from saeworks.activations.texts import ListTexts, open_texts
from saeworks.errors import InputError, RunError
from saeworks.files import read_json, write_json
from saeworks.models.language_model import LanguageModel

Sentences = Callable[..., ListTexts]
SITE = "layers.1.resid_post"
OPTIONS: dict[str, Any] = {"context_length": 16, "shard_rows": 64, "window_shards": 3, "harvest_batch_size": 4}


def rows_of(model: LanguageModel, source: Any, count: int) -> dict[tuple[int, int], tuple[int, torch.Tensor]]:
    """What the store must hold: the first ``count`` harvested rows, by document and position."""
    harvester = Harvester(model, source, SITE, 16, 4, seed=0, max_norm_ratio=None)
    found: dict[tuple[int, int], tuple[int, torch.Tensor]] = {}
    for batch in harvester.batches(epochs=1):
        for i in range(len(batch)):
            if len(found) < count:
                key = (int(batch.document_ids[i]), int(batch.positions[i]))
                found[key] = (int(batch.token_ids[i]), batch.activations[i])
    return found


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trip(tiny_model: LanguageModel, sentences: Sentences, tmp_path: Path, dtype: str) -> None:
    source = sentences(100)
    write_store(tiny_model, source, SITE, 500, tmp_path / "s", dtype=dtype, **OPTIONS)
    store = ActivationStore(tmp_path / "s")
    assert (len(store), store.width, store.site) == (500, 16, SITE)
    store.verify()
    expected = rows_of(tiny_model, source, 500)
    every = store[:]
    pairs = list(zip(every.document_ids.tolist(), every.positions.tolist(), strict=True))
    assert sorted(pairs) == sorted(expected)
    for i, key in enumerate(pairs):
        token, activations = expected[key]
        assert int(every.token_ids[i]) == token
        assert torch.equal(every.activations[i], activations.to(getattr(torch, dtype)).float())
    # Each window of 192 rows holds its own rows, shuffled.
    for start in (0, 192, 384):
        here = pairs[start : start + 192]
        assert sorted(here) == sorted(list(expected)[start : start + 192])
        assert here != list(expected)[start : start + 192]


def test_random_access_agrees_with_sequential_access(
    tiny_model: LanguageModel, sentences: Sentences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saeworks.activations import store as module

    monkeypatch.setattr(module, "OPEN_SHARDS", 2)
    write_store(tiny_model, sentences(100), SITE, 500, tmp_path / "s", **OPTIONS)
    store = ActivationStore(tmp_path / "s")
    every = store.rows(0, 500)
    index = np.random.default_rng(0).integers(-500, 500, 300)
    for chosen in (index, torch.from_numpy(index), index.tolist()):
        batch = store[chosen]
        assert torch.equal(batch.activations, every.activations[torch.from_numpy(index)])
        assert torch.equal(batch.positions, every.positions[torch.from_numpy(index)])
    assert torch.equal(store[60:70].activations, every.activations[60:70])
    assert torch.equal(store[::7].token_ids, every.token_ids[::7])
    assert torch.equal(store[-1].document_ids, every.document_ids[-1:])
    assert len(store[5:5]) == len(store[[]]) == 0
    assert len(store._open) <= 2
    for bad in (500, -501):
        with pytest.raises(InputError, match=f"Row {bad} "):
            store[bad]
    before = contents(tmp_path / "s")
    store[0:3].activations.zero_()
    store.rows(0, 3).token_ids.zero_()
    assert torch.equal(store.rows(0, 3).activations, every.activations[:3])
    assert contents(tmp_path / "s") == before


def test_statistics_are_those_of_the_stored_rows(
    tiny_model: LanguageModel, sentences: Sentences, tmp_path: Path
) -> None:
    write_store(tiny_model, sentences(100), SITE, 500, tmp_path / "s", **OPTIONS)
    store = ActivationStore(tmp_path / "s")
    rows = store[:].activations.double()
    found = store.statistics()
    torch.testing.assert_close(found["mean"], rows.mean(0), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(found["m2"], ((rows - rows.mean(0)) ** 2).sum(0), atol=1e-10, rtol=1e-10)
    norms = rows.norm(dim=1)
    assert store.manifest["mean_norm"] == pytest.approx(float(norms.mean()), rel=1e-12)
    assert store.manifest["mean_square_norm"] == pytest.approx(float((norms**2).mean()), rel=1e-12)
    config = store.manifest["config"]
    assert config["model_fingerprint"] == tiny_model.fingerprint()
    assert config["text_fingerprint"] == sentences(100).fingerprint()


KILLED = """
    import os, sys
    from pathlib import Path
    from saeworks.activations import store_writing
    from saeworks.activations.texts import open_texts
    from saeworks.models.language_model import load_language_model
    import torch

    torch.set_num_threads(1)
    model, texts, directory, left, half = sys.argv[1:]
    write, shards = store_writing.atomic_write_bytes, 0

    def counting(path, data):
        global shards
        if path.name.startswith("shard-"):
            if shards == int(left):
                if half == "half":
                    (path.parent / f".{path.name}.1.tmp").write_bytes(data[: len(data) // 2])
                os._exit(9)
            shards += 1
        write(path, data)

    store_writing.atomic_write_bytes = counting
    store_writing.write_store(
        load_language_model(model, device="cpu"), open_texts([texts], split="all"), "layers.1.resid_post", 700,
        directory, context_length=16, shard_rows=64, window_shards=3, harvest_batch_size=4, resume=True)
"""


def test_a_killed_write_resumes_to_the_same_bytes(
    tiny_model: LanguageModel, tiny_model_directory: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    source = open_texts([str(tiny_texts)], split="all")
    whole = write_store(tiny_model, source, SITE, 700, tmp_path / "whole", **OPTIONS)
    assert len(contents(whole)) == 11 + 2
    directory = tmp_path / "killed"
    # Killed inside the first window while a shard is half written, then, resumed, inside the second.
    for left, half in (("1", "half"), ("4", "")):
        arguments = [str(tiny_model_directory), str(tiny_texts), str(directory), left, half]
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(KILLED), *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 9, done.stderr
        with pytest.raises(InputError, match="not finished"):
            ActivationStore(directory)
    with pytest.raises(InputError, match="unfinished activation store"):
        write_store(tiny_model, source, SITE, 700, directory, **OPTIONS)
    with pytest.raises(InputError, match="seed \\(0 there, 1 now\\)"):
        write_store(tiny_model, source, SITE, 700, directory, seed=1, resume=True, **OPTIONS)
    write_store(tiny_model, source, SITE, 700, directory, resume=True, **OPTIONS)
    assert contents(directory) == contents(whole)
    ActivationStore(directory).verify()


def test_resume_does_not_write_whole_shards_again(
    tiny_model: LanguageModel, sentences: Sentences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = store_writing.atomic_write_bytes

    def counting(path: Path, data: bytes) -> None:
        if path.name == "shard-00004.safetensors" and path.name not in written:
            written.append(path.name)
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, data)

    monkeypatch.setattr(store_writing, "atomic_write_bytes", counting)
    with pytest.raises(KeyboardInterrupt):
        write_store(tiny_model, sentences(100), SITE, 500, tmp_path / "s", **OPTIONS)
    before, written[:] = list(written), ["shard-00004.safetensors"]
    write_store(tiny_model, sentences(100), SITE, 500, tmp_path / "s", resume=True, **OPTIONS)
    shards = [name for name in written[1:] if name.startswith("shard")]
    assert shards == [f"shard-0000{i}.safetensors" for i in range(4, 8)]
    assert "shard-00003.safetensors" in before
    finished = contents(tmp_path / "s")
    write_store(tiny_model, sentences(100), SITE, 500, tmp_path / "s", resume=True, **OPTIONS)
    assert contents(tmp_path / "s") == finished


def test_texts_that_end_early_give_a_shorter_store_and_a_warning(
    tiny_model: LanguageModel, sentences: Sentences, tmp_path: Path
) -> None:
    source = sentences(20)
    words = sum(len(found.text.split()) for found in source.documents())
    with pytest.warns(UserWarning, match=f"ended after {words} of 9999 tokens"):
        write_store(tiny_model, source, SITE, 9999, tmp_path / "s", **OPTIONS)
    assert len(ActivationStore(tmp_path / "s")) == words


def test_damage_is_named(tiny_model: LanguageModel, sentences: Sentences, tmp_path: Path) -> None:
    directory = write_store(tiny_model, sentences(100), SITE, 300, tmp_path / "s", **OPTIONS)
    shard = directory / "shard-00002.safetensors"
    whole = shard.read_bytes()

    def refused(*expected: str, verify: bool = False) -> None:
        store = ActivationStore(directory) if verify else None
        with pytest.raises(InputError) as caught:
            store.verify() if store else ActivationStore(directory)
        for part in expected:
            assert part in str(caught.value)

    shard.write_bytes(whole[:-1])
    refused("shard-00002.safetensors", f"{len(whole) - 1} bytes instead of {len(whole)}", "Copy it again")
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("shard-00002.safetensors", "checksum", verify=True)
    shard.write_bytes(b"\xff" * 8 + whole[8:])
    refused("shard-00002.safetensors", "header")
    shard.unlink()
    refused("shard-00002.safetensors", "missing")
    shard.write_bytes(whole)
    manifest = read_json(directory / MANIFEST)
    write_json(directory / MANIFEST, {**manifest, "schema_version": 99})
    refused("version 99")
    write_json(directory / MANIFEST, {**manifest, "width": 17})
    refused("shard-00000.safetensors", "promises")
    write_json(directory / MANIFEST, {**manifest, "count": 299})
    refused("contradicts itself")
    (directory / MANIFEST).write_text("{")
    refused("not valid JSON")
    (directory / MANIFEST).unlink()
    refused("no manifest.json")
    (directory / UNFINISHED).write_bytes(b"")
    refused("not finished")
    with pytest.raises(InputError, match="damaged"):
        write_store(tiny_model, sentences(100), SITE, 300, directory, resume=True, **OPTIONS)
    with pytest.raises(InputError, match="no such directory"):
        ActivationStore(tmp_path / "elsewhere")
    write_json(directory / MANIFEST, manifest)
    (directory / STATISTICS).unlink()
    with pytest.raises(InputError, match="statistics"):
        ActivationStore(directory).statistics()


def test_a_shard_lost_from_an_unfinished_store_is_noticed(
    tiny_model: LanguageModel, sentences: Sentences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_writing, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        write_store(tiny_model, sentences(100), SITE, 384, tmp_path / "s", **OPTIONS)
    (tmp_path / "s" / "shard-00001.safetensors").unlink()
    with pytest.raises(InputError, match=r"shard-00001\.safetensors.*missing or damaged"):
        write_store(tiny_model, sentences(100), SITE, 384, tmp_path / "s", resume=True, **OPTIONS)


def test_directories_with_something_else_in_them_are_left_alone(
    tiny_model: LanguageModel, sentences: Sentences, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(InputError, match="not empty"):
        write_store(tiny_model, sentences(10), SITE, 10, tmp_path, **OPTIONS)
    directory = write_store(tiny_model, sentences(100), SITE, 10, tmp_path / "s", **OPTIONS)
    with pytest.raises(InputError, match="finished activation store"):
        write_store(tiny_model, sentences(100), SITE, 10, directory, **OPTIONS)
    with pytest.raises(InputError, match="at least 1"):
        write_store(tiny_model, sentences(10), SITE, 0, tmp_path / "t", **OPTIONS)


def test_a_full_disk_is_told_before_and_while_writing(
    tiny_model: LanguageModel, sentences: Sentences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"takes .* GB, but the disk has .* GB free"):
        write_store(tiny_model, sentences(10), SITE, 10**15, tmp_path / "huge", **OPTIONS)
    assert not (tmp_path / "huge").exists()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("saeworks.files.os.fsync", full)
    with pytest.raises(RunError, match="disk is full"):
        write_store(tiny_model, sentences(100), SITE, 300, tmp_path / "s", **OPTIONS)


def test_a_kill_before_the_first_note_of_the_place_does_no_harm(
    tiny_model: LanguageModel, sentences: Sentences, tmp_path: Path
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / f".{UNFINISHED}.123.tmp").write_bytes(b"half")
    write_store(tiny_model, sentences(20), SITE, 50, tmp_path / "s", **OPTIONS)
    assert len(ActivationStore(tmp_path / "s")) == 50
    assert not list((tmp_path / "s").glob(".*"))


def test_a_file_in_the_place_of_the_store_is_a_sentence(
    tiny_model: LanguageModel, sentences: Sentences, tmp_path: Path
) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        write_store(tiny_model, sentences(20), SITE, 50, tmp_path / "s", **OPTIONS)
