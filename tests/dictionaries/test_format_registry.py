"""Finding out which format a path holds, and what is said where it holds none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from format_cases import assert_same, dictionary

import saeworks
from saeworks.dictionaries.formats import save
from saeworks.dictionaries.formats.registry import FORMATS, detect, is_dictionary, write
from saeworks.errors import InputError

KIND = {"saeworks": "topk", "sparsify": "topk", "dictionary_learning": "topk"}
WRITTEN = [known.name for known in FORMATS if known.save is not None]


@pytest.fixture
def made(tmp_path: Path):
    def make(name: str, path: str = "") -> Path:
        where = tmp_path / (path or name)
        write(dictionary(KIND.get(name, "relu")), where, name)
        return where

    return make


@pytest.mark.parametrize("name", WRITTEN)
def test_every_format_recognises_its_own_folder_and_no_other_does(made, name: str) -> None:
    path = made(name)
    assert detect(path).name == name
    assert [known.name for known in FORMATS if known.detect(path)] == [name]
    assert is_dictionary(path)
    assert saeworks.load(path).cfg.metadata.get("format") == (None if name == "saeworks" else name)


@pytest.mark.parametrize("name", WRITTEN)
def test_its_file_of_weights_is_enough_to_name_it(made, name: str) -> None:
    path = made(name)
    weights = next(f for f in sorted(path.rglob("*")) if f.suffix in (".safetensors", ".pt", ".npz"))
    assert detect(weights).name == name
    assert_same(saeworks.load(path), saeworks.load(weights))


def test_what_an_export_had_no_place_for_lies_beside_it_and_hints_win(made) -> None:
    path = made("openai")
    beside = json.loads((path / "saeworks.json").read_text())
    assert beside["metadata"]["site"] == "layers.3.resid_post"
    assert saeworks.load(path).cfg.metadata["site"] == "layers.3.resid_post"
    assert saeworks.load(path, hints={"site": "layers.1.mlp_out"}).cfg.metadata["site"] == "layers.1.mlp_out"
    (path / "saeworks.json").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        saeworks.load(path)


def test_a_format_may_be_named_where_files_would_fit_another(made) -> None:
    path = made("dictionary_learning")
    assert saeworks.load(path, format="dictionary_learning").cfg.architecture == "topk"
    with pytest.raises(InputError, match="lacks cfg"):
        saeworks.load(path, format="saelens")
    with pytest.raises(InputError, match="Did you mean 'saelens'"):
        saeworks.load(path, format="saelense")


def test_ours_comes_first_in_a_folder_with_two(made, tmp_path: Path) -> None:
    path = made("saeworks")
    write(dictionary("jumprelu"), tmp_path / "other", "gemma_scope")
    (tmp_path / "other" / "params.npz").rename(path / "params.npz")
    assert detect(path).name == "saeworks"


def test_a_folder_of_dictionaries_says_so(made, tmp_path: Path) -> None:
    made("saelens", "run/a")
    made("sparsify", "run/b")
    with pytest.raises(InputError, match=r"is no dictionary itself but holds 2, such as '.*run/a'"):
        saeworks.load(tmp_path / "run")
    assert not is_dictionary(tmp_path / "run")


@pytest.mark.parametrize("files", [{}, {"notes.txt": "hello"}, {"config.json": "{}", "model.safetensors": ""}])
def test_what_is_no_dictionary_is_told_what_one_is(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    words = f"but {', '.join(sorted(files)) or 'nothing'}. Known: saeworks: cfg.json and weights.safetensors; saelens:"
    with pytest.raises(InputError) as said:
        saeworks.load(tmp_path)
    assert words in str(said.value)
    assert not is_dictionary(tmp_path)


def test_a_file_of_another_kind_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(InputError, match="no file of weights of a known format"):
        saeworks.load(tmp_path / "a.txt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "b.pt")
    with pytest.raises(InputError, match="no file of weights of a known format"):
        saeworks.load(tmp_path / "b.pt")


def test_a_damaged_dictionary_is_still_one(made) -> None:
    path = made("saelens")
    (path / "sae_weights.safetensors").write_bytes(b"no")
    assert is_dictionary(path)
    with pytest.raises(InputError, match="truncated or damaged"):
        saeworks.load(path)


def test_saving_in_a_format_returns_how_far_the_copy_is_off(tmp_path: Path) -> None:
    assert save(dictionary("topk"), tmp_path / "a", "saelens") < 1e-6
    assert save(dictionary("topk"), tmp_path / "b", "saeworks") == 0.0
    with pytest.raises(InputError, match="exists already"):
        save(dictionary("topk"), tmp_path / "a", "saelens")


def test_a_device_that_is_absent_is_said_before_anything_is_read() -> None:
    with pytest.raises(InputError, match="Unknown device 'gpu'"):
        saeworks.load("no/such/place", "gpu")
