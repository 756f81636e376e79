"""Files whose layout is right and whose values make no sense: every one is a sentence, and none a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from format_cases import D, N, dictionary
from safetensors.torch import load_file, save_file

import saeworks
from saeworks.dictionaries.formats.registry import write
from saeworks.errors import InputError

HUGE = 10**400


def changed(file: Path, *keys: str, to: object) -> None:
    """Set one value of a JSON file, as Python writes it: NaN and infinity as well."""
    settings = json.loads(file.read_text())
    inner = settings
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    file.write_text(json.dumps(settings))


@pytest.mark.parametrize("value", [HUGE, [], {}, "many"])
def test_settings_that_are_no_numbers(tmp_path: Path, value: object) -> None:
    write(dictionary("topk"), tmp_path / "a", "saelens")
    changed(tmp_path / "a" / "cfg.json", "k", to=value)
    with pytest.raises(InputError, match="'k' is"):
        saeworks.load(tmp_path / "a")


@pytest.mark.parametrize("value", [[], {}, "odd"])
def test_an_operation_that_is_no_name(tmp_path: Path, value: object) -> None:
    write(dictionary("topk"), tmp_path / "a", "saelens")
    changed(tmp_path / "a" / "cfg.json", "normalize_activations", to=value)
    with pytest.raises(InputError, match="normalize_activations"):
        saeworks.load(tmp_path / "a")


def test_a_number_of_thousands_of_digits(tmp_path: Path) -> None:
    write(dictionary("topk"), tmp_path / "a", "saelens")
    (tmp_path / "a" / "cfg.json").write_text('{"k": ' + 5000 * "1" + "}")
    with pytest.raises(InputError, match="not valid JSON"):
        saeworks.load(tmp_path / "a")


def test_what_json_does_not_have_is_read_as_null_and_can_be_written_again(tmp_path: Path) -> None:
    write(dictionary("topk"), tmp_path / "a", "saelens")
    changed(tmp_path / "a" / "cfg.json", "l1_coefficient", to=float("nan"))
    text = (tmp_path / "a" / "cfg.json").read_text()
    (tmp_path / "a" / "cfg.json").write_text(text.replace("NaN", '{"a": NaN, "b": 1e999, "c": -Infinity}'))
    (tmp_path / "a" / "saeworks.json").unlink()
    found = saeworks.load(tmp_path / "a")
    assert found.cfg.metadata["original_config"]["l1_coefficient"] == {"a": None, "b": None, "c": None}
    write(found, tmp_path / "b", "saeworks")
    saeworks.load(tmp_path / "b").verify(torch.randn(8, D))


@pytest.mark.parametrize("kind", ["saeworks", "saelens"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recorded", [1]),
        ("recorded", {"l0": "3"}),
        ("recorded", {"l0": HUGE}),
        ("claimed", {"l0": [3]}),
        ("claimed", True),
        ("origin", "the hub"),
        ("origin", {"repo": 1}),
        ("group_sizes", 3),
        ("group_sizes", [N, -1, 1]),
        ("group_sizes", ["a"]),
    ],
)
def test_metadata_that_cannot_be_computed_with(tmp_path: Path, kind: str, key: str, value: object) -> None:
    write(dictionary("topk"), tmp_path / "a", kind)
    file = tmp_path / "a" / ("cfg.json" if kind == "saeworks" else "saeworks.json")
    changed(file, "metadata", key, to=value)
    with pytest.raises(InputError, match=f"'{key}' in the metadata"):
        saeworks.load(tmp_path / "a")


def test_records_may_be_incomplete(tmp_path: Path) -> None:
    write(dictionary("topk"), tmp_path / "a", "saeworks")
    changed(tmp_path / "a" / "cfg.json", "metadata", "recorded", to={"l0": None})
    assert saeworks.load(tmp_path / "a").verify(torch.randn(8, D))["recorded"] == {"l0": None}


NOTHING = torch.tensor(float("nan"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("k", NOTHING),
        ("k", torch.tensor(float("inf"))),
        ("threshold", NOTHING),
        ("threshold", torch.tensor(1e308, dtype=torch.float64)),
        ("group_sizes", torch.tensor(3)),
        ("group_sizes", torch.tensor([4, 3])),
        ("group_sizes", torch.tensor([-4, N + 4])),
    ],
)
def test_tensors_that_are_no_settings(tmp_path: Path, name: str, value: torch.Tensor) -> None:
    made = dictionary("jumprelu", metadata={"k": 4, "group_sizes": [4, N - 4]})
    write(made.replace(threshold=torch.full((N,), 0.5)), tmp_path / "a", "dictionary_learning")
    state = torch.load(tmp_path / "a" / "ae.pt")
    assert name in state
    torch.save({**state, name: value}, tmp_path / "a" / "ae.pt")
    with pytest.raises(InputError):
        saeworks.load(tmp_path / "a")


@pytest.mark.parametrize("factor", [torch.ones(2), torch.zeros(0), HUGE, "two", -1.0, NOTHING])
def test_factors_of_a_backup_that_are_none(tmp_path: Path, factor: Any) -> None:
    write(dictionary("relu"), tmp_path / "a", "dictionary_learning")
    state = torch.load(tmp_path / "a" / "ae.pt")
    torch.save({"ae": state, "norm_factor": factor}, tmp_path / "a" / "ae.pt")
    with pytest.raises(InputError, match="norm_factor"):
        saeworks.load(tmp_path / "a")


def test_weights_that_are_no_tensors(tmp_path: Path) -> None:
    write(dictionary("relu"), tmp_path / "a", "dictionary_learning")
    state = torch.load(tmp_path / "a" / "ae.pt")
    torch.save({**state, "encoder.weight": "none"}, tmp_path / "a" / "ae.pt")
    with pytest.raises(InputError, match=r"no tensor 'encoder\.weight'"):
        saeworks.load(tmp_path / "a")


def test_a_decoder_that_is_one_number(tmp_path: Path) -> None:
    write(dictionary("jumprelu"), tmp_path / "a", "gemma_scope_2")
    file = tmp_path / "a" / "params.safetensors"
    save_file({**load_file(file), "w_dec": torch.tensor(1.0)}, file)
    with pytest.raises(InputError, match="2 dimensions are needed"):
        saeworks.load(tmp_path / "a")


def test_a_threshold_beyond_its_type(tmp_path: Path) -> None:
    made = dictionary("jumprelu")
    rows = made.W_dec / made.W_dec.norm(dim=1, keepdim=True)
    write(made.replace(threshold=torch.full((N,), 0.5), W_dec=rows), tmp_path / "a", "llama_scope")
    changed(tmp_path / "a" / "hyperparams.json", "jump_relu_threshold", to=1e300)
    with pytest.raises(InputError, match="threshold holds values that are not finite"):
        saeworks.load(tmp_path / "a")
