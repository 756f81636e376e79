"""Pooled texts on disk: damaged files, a bound on their size, processes that write at once; and the tables in them."""

import gc
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch

from saeworks.evals.shared.pooled_files import PooledFiles
from saeworks.evals.shared.pooled_rows import Rows, Tables
from saeworks.evals.shared.pooling import TextPool


def equal(a, b):
    """Two outcomes of pooling the same texts."""
    return (
        torch.equal(a.tokens, b.tokens)
        and all(torch.equal(a.activations[s], b.activations[s]) for s in b.activations)
        and all(torch.equal(a.latents[name], b.latents[name]) for name in b.latents)
    )


def parts(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.safetensors"))


@pytest.mark.parametrize("damage", ["cut", "turned", "foreign", "renamed", "empty"])
def test_a_damaged_file_is_noticed_and_made_anew(model, make_sentences, make_dictionary, tmp_path, capsys, damage):
    names, rows = {"d": make_dictionary()}, make_sentences(8)
    first = TextPool(tmp_path).pool(names, model, rows)
    written = {path: path.read_bytes() for path in parts(tmp_path)}
    assert len(written) == 2
    (tmp_path / "notes.txt").write_text("somebody's", encoding="utf-8")
    beside = next(iter(written)).with_name("model.safetensors")
    beside.write_bytes(b"somebody's too")
    for path, data in written.items():
        if damage == "cut":
            path.write_bytes(data[:-5])
        elif damage == "turned":  # one bit in the numbers
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        elif damage == "foreign":
            path.write_bytes(b"\x93NUMPY")
        elif damage == "empty":
            path.write_bytes(b"")
    if damage == "renamed":
        first_path, second_path = written
        first_path.write_bytes(written[second_path])
        second_path.write_bytes(written[first_path])
    pool = TextPool(tmp_path)
    assert equal(pool.pool(names, model, rows), first)
    assert pool.texts_read == 8
    assert capsys.readouterr().err.count("is damaged") == 2
    assert {path for path in parts(tmp_path) if path != beside} == written.keys()
    assert beside.read_bytes() == b"somebody's too"
    assert (tmp_path / "notes.txt").exists()
    again = TextPool(tmp_path)
    assert equal(again.pool(names, model, rows), first)
    assert again.texts_read == 0
    assert capsys.readouterr().err == ""


def test_the_files_that_were_not_used_for_longest_go_first(model, make_sentences, make_dictionary, tmp_path):
    names, groups = {"d": make_dictionary()}, [make_sentences(10, seed=i) for i in range(3)]
    TextPool(tmp_path).pool(names, model, groups[0])
    room = sum(path.stat().st_size for path in parts(tmp_path))
    TextPool(tmp_path).pool(names, model, groups[1])
    for age, path in enumerate(sorted(parts(tmp_path), key=lambda p: p.stat().st_mtime)):
        os.utime(path, (1e9 + age, 1e9 + age))
    used = TextPool(tmp_path)
    used.pool(names, model, groups[0])  # now the second group is the one not used for longest
    assert used.texts_read == 0
    TextPool(tmp_path, disk=int(2.5 * room)).pool(names, model, groups[2])
    assert sum(path.stat().st_size for path in parts(tmp_path)) <= 2.5 * room
    for group, there in ((0, True), (2, True), (1, False)):
        pool = TextPool(tmp_path)
        pool.pool(names, model, groups[group])
        assert (pool.texts_read == 0) == there


def test_what_has_no_room_at_all_is_computed_and_not_kept(model, make_sentences, make_dictionary, tmp_path):
    names, rows = {"d": make_dictionary()}, make_sentences(10)
    pool = TextPool(tmp_path, memory=10, disk=10)
    assert equal(pool.pool(names, model, rows), TextPool().pool(names, model, rows))
    assert pool.nbytes == 0
    assert parts(tmp_path) == []


def test_a_place_that_cannot_be_written_costs_no_result(model, make_sentences, make_dictionary, tmp_path, capsys):
    names, rows = {"d": make_dictionary()}, make_sentences(5)
    (tmp_path / "file").write_text("", encoding="utf-8")
    pool = TextPool(tmp_path / "file")
    assert equal(pool.pool(names, model, rows), TextPool().pool(names, model, rows))
    assert capsys.readouterr().err.count("are not kept") == 1


PROCESS = """
import sys, time
from pathlib import Path
import torch
from saeworks.evals.shared.pooled_files import Part, PooledFiles
from saeworks.evals.shared.pooled_files import PooledFiles
from saeworks.evals.shared.pooled_rows import Rows
directory, number = Path(sys.argv[1]), int(sys.argv[2])
ready, go = Path(f"{directory}.ready{number}"), Path(f"{directory}.go")
places = [PooledFiles(directory / "wide", 1 << 30), PooledFiles(directory / "narrow", 30_000)]
ready.touch()
while not go.exists():
    time.sleep(0.001)
for i in range(60):
    # Every other part is the same in both processes; the others share some of their texts.
    first = 100 * i + (number if i % 2 else 0)
    keys = [(first + j).to_bytes(32, "little") for j in range(20)]
    table = torch.zeros(20, 400)
    table[torch.arange(20), torch.arange(first, first + 20) % 400] = torch.arange(first, first + 20).float() + 1
    for files in places:
        files.add(f"{i % 3:064x}", Part(keys, torch.ones(20, dtype=torch.int64), Rows.smallest(table)))
"""


def test_two_processes_may_write_at_once(tmp_path, capsys):
    """Into a place with room for all, and into one where both make room all the time."""
    directory = tmp_path / "pool"
    directory.mkdir()
    command = [sys.executable, "-c", PROCESS, str(directory)]
    workers = [subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE, text=True) for i in range(2)]
    while not all(Path(f"{directory}.ready{i}").exists() for i in range(2)):
        assert all(worker.poll() is None for worker in workers), [w.communicate()[1] for w in workers]
        time.sleep(0.01)
    Path(f"{directory}.go").touch()
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    assert errors == ["", ""]
    assert not list(directory.rglob(".*.tmp"))
    wanted = {n.to_bytes(32, "little") for n in range(6100)}
    for name, limit in (("wide", 1 << 30), ("narrow", 30_000)):
        files, found = PooledFiles(directory / name, limit), 0
        for part in (part for shelf in range(3) for part in files.find(f"{shelf:064x}", 400, wanted)):
            numbers = torch.tensor([int.from_bytes(key, "little") for key in part.keys])
            table = torch.zeros(20, 400)
            table[torch.arange(20), numbers % 400] = numbers.float() + 1
            assert torch.equal(part.rows.dense(), table)
            found += 1
        # Each wrote 60 parts, of which 30 are the same.
        assert found == 90 if name == "wide" else 0 < found < 90
    assert capsys.readouterr().err == ""


def test_rows_take_the_smaller_form_and_keep_every_number():
    g = torch.Generator().manual_seed(0)
    table = torch.randn(20, 50, generator=g)
    sparse = table * (torch.rand(20, 50, generator=g) < 0.1)
    sparse[3] = 0
    for given, compressed in ((table, False), (sparse, True), (torch.zeros(0, 5), False)):
        rows = Rows.smallest(given)
        assert (rows.columns is not None) == compressed
        assert rows.nbytes <= given.numel() * 4
        assert torch.equal(rows.dense(), given)
        order = torch.tensor([3, 0, 3, 19]) if len(given) else torch.zeros(0, dtype=torch.int64)
        assert torch.equal(rows.take(order).dense(), given[order])
    mixed = Rows.joined([Rows.smallest(sparse), Rows.smallest(table[:2]), Rows.smallest(sparse[3:4])], 50)
    assert torch.equal(mixed.dense(), torch.cat([sparse, table[:2], sparse[3:4]]))
    assert mixed.columns is not None


def test_numbers_that_are_no_table_do_not_fit():
    rows = Rows.smallest(torch.eye(6))
    assert rows.columns is not None
    assert rows.offsets is not None
    assert rows.fits(6)
    assert not rows.fits(5)
    assert not Rows(6, rows.values, rows.columns + 1, rows.offsets).fits(6)
    assert not Rows(6, rows.values * torch.nan, rows.columns, rows.offsets).fits(6)
    assert not Rows(6, rows.values, rows.columns, rows.offsets.flip(0)).fits(6)
    assert not Rows(6, rows.values, rows.columns).fits(6)


def test_one_table_is_held_at_a_time():
    made: list[weakref.ref] = []

    def make():
        table = torch.zeros(4)
        made.append(weakref.ref(table))
        return table

    tables = Tables({"a": make, "b": make})
    assert tables["a"] is tables["a"]
    assert len(made) == 1
    tables["b"]
    gc.collect()
    assert made[0]() is None
    assert list(tables) == ["a", "b"]
