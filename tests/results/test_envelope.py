"""Result files: round trip, null for NaN, readable errors."""

import json
import math
import re

import numpy as np
import pytest

from saeworks.errors import InputError
from saeworks.results.envelope import Result, read_result, read_results, result_path


def example(**changes) -> Result:
    values = {
        "eval_type_id": "core",
        "eval_config": {"tokens": 5},
        "eval_result_metrics": {"sparsity": {"l0": 1.5, "l1": math.nan}},
        "sae_lens_id": "layer/1 <a>",
        "ci95": {"sparsity.l0": (1.0, 2.0), "sparsity.l1": None},
        "seed": 3,
        "n": 7,
        "definition_id": "saeworks/core/1",
    }
    return Result(**{**values, **changes})


def test_round_trip_with_side_file(tmp_path):
    result = example().attach({"density": np.array([0.25, math.nan], dtype=np.float32)})
    path = result.write(tmp_path)
    assert path.parent == tmp_path / "core"
    assert re.fullmatch(r"layer_1__a_~[0-9a-f]{8}_eval_results\.json", path.name)
    raw = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert raw["eval_result_metrics"]["sparsity"] == {"l0": 1.5, "l1": None}
    assert "density" not in path.read_text()
    again = read_result(path)
    assert again.metric("sparsity", "l0") == 1.5
    assert again.metric("sparsity", "l1") is None
    assert again.metric("absent", "l1") is None
    assert again.ci95["sparsity.l0"] == (1.0, 2.0)
    assert again.arrays()["density"][0] == 0.25
    assert again.model_dump(exclude={"eval_result_metrics"}) == result.model_dump(exclude={"eval_result_metrics"})
    assert [r.eval_id for r in read_results(tmp_path)] == [result.eval_id]
    assert not list(tmp_path.rglob("*.tmp"))


def test_every_name_has_a_file_of_its_own(tmp_path):
    names = ["a b", "a_b", "a/b", "a~b", "a_b_", "a b ", "a.b", "ä b"]
    names.append(result_path(tmp_path, "core", "a b").name.removesuffix("_eval_results.json"))  # as a name
    paths = {name: example(sae_lens_id=name).write(tmp_path) for name in names}
    assert len(set(paths.values())) == len(names)
    assert all(path.parent == tmp_path / "core" for path in paths.values())
    assert all(read_result(path).sae_lens_id == name for name, path in paths.items())
    assert {path: result_path(tmp_path, "core", name) for name, path in paths.items()} == {p: p for p in paths.values()}
    assert paths["a_b"].name == "a_b_eval_results.json"
    assert paths["a.b"].name == "a.b_eval_results.json"


def test_infinities_and_numpy_numbers_become_json(tmp_path):
    unstructured = {"a": np.float32(2.5), "b": [np.int64(3), math.inf], "c": np.arange(2)}
    path = example(eval_result_unstructured=unstructured).write(tmp_path)
    assert read_result(path).eval_result_unstructured == {"a": 2.5, "b": [3, None], "c": [0, 1]}


def test_files_of_the_published_benchmark_are_read(tmp_path):
    path = tmp_path / "x_eval_results.json"
    path.write_text(
        json.dumps(
            {
                "eval_type_id": "core",
                "eval_config": {},
                "eval_id": "1",
                "datetime_epoch_millis": 1,
                "eval_result_metrics": {"sparsity": {"l0": 3}},
                "sae_bench_commit_hash": "abc",
                "sae_lens_id": "custom_sae",
                "sae_lens_release_id": "r",
                "sae_lens_version": "6",
                "sae_cfg_dict": {},
            }
        )
    )
    result = read_result(path)
    assert result.metric("sparsity", "l0") == 3
    assert result.ci95 == {}


@pytest.mark.parametrize("content", ["{", "[]", '{"eval_type_id": "core"}', "\x00\x01"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "bad_eval_results.json"
    path.write_text(content)
    with pytest.raises(InputError, match="bad_eval_results"):
        read_result(path)


def test_an_absent_directory_has_no_results(tmp_path):
    assert read_results(tmp_path / "nothing") == []
