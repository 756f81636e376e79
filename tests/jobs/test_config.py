"""Configurations: precedence of defaults, saved run, file and flags; and sentences about what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from saeworks.errors import InputError
from saeworks.jobs.config import EvaluateConfig, RunConfig, changed_keys, plain, resolve


def yaml_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_hold_a_grid_of_three_recipes_and_two_sparsities() -> None:
    config = resolve(RunConfig, {})
    assert config.recipe == ("topk", "batch_topk", "matryoshka_batch_topk")
    assert len(config.k) == 2
    assert config.model == "world"
    assert config.data == ("world",)


def test_flags_win_over_the_file_and_the_file_over_a_saved_run(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "tokens: 2000\nwidth: 64\n")
    saved = {"tokens": 1000, "width": [32], "seed": 7}
    config = resolve(RunConfig, {"tokens": 3000, "width": None}, file, saved)
    assert (config.tokens, config.width, config.seed) == (3000, (64,), 7)
    assert config.k == RunConfig.model_fields["k"].default


@pytest.mark.parametrize("written", ["[16, 32]", "'16,32'", "16, 32", "[16.0, '32']", "- 16\n  - 32"])
def test_lists_may_be_written_in_several_ways(written: str, tmp_path: Path) -> None:
    text = f"k:\n  {written}\n" if written.startswith("-") else f"k: {written}\n"
    assert resolve(RunConfig, {}, yaml_file(tmp_path, text)).k == (16, 32)


def test_a_file_name_with_a_comma_stays_whole() -> None:
    assert resolve(RunConfig, {"data": "a,b.txt"}).data == ("a,b.txt",)
    assert resolve(RunConfig, {"recipe": "topk, batch_topk"}).recipe == ("topk", "batch_topk")


@pytest.mark.parametrize(("written", "value"), [("1e6", 1_000_000), ("1_000_000", 1_000_000), ("3.0e+5", 300_000)])
def test_round_numbers_may_be_written_short(written: str, value: int, tmp_path: Path) -> None:
    assert resolve(RunConfig, {}, yaml_file(tmp_path, f"tokens: {written}\n")).tokens == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tokenz: 5", "unknown key 'tokenz'. Did you mean 'tokens'?"),
        ("text-column: x", "Did you mean 'text_column'?"),
        ("tokens: many", "'tokens' in '{file}' is 'many', but a whole number is expected."),
        ("tokens: 1.5", "is 1.5, but a whole number is expected"),
        ("tokens: true", "is True, but a whole number is expected"),
        ("tokens: -4", "is -4, but it must be greater than 0"),
        ("seed: -1", "is -1, but it must be at least 0"),
        ("width: []", "at least one value is expected"),
        ("width: [8, x]", "is 'x', but a whole number is expected"),
        ("learning_rate: fast", "is 'fast', but a number is expected"),
        ("resume: perhaps", "is 'perhaps', but true or false is expected"),
        ("model: [1]", "is [1], but text is expected"),
        ("normalization: unit", "one of 'none', 'unit_msn' or 'sqrt_d' is expected"),
        ("evals: [cores]", "is 'cores', but it is unknown. Did you mean 'core'?"),
        ("dtype: float31", "Did you mean 'float32'?"),
        ("- a\n- b", "must hold 'key: value' lines, but holds a list"),
        ("a: [1", "is not valid YAML"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    file = yaml_file(tmp_path, text)
    with pytest.raises(InputError) as caught:
        resolve(RunConfig, {}, file)
    assert says.replace("{file}", str(file)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_flag_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "tokens: 5\n")
    with pytest.raises(InputError) as caught:
        resolve(RunConfig, {"tokens": "many"}, file)
    assert str(file) not in str(caught.value)


def test_an_empty_file_changes_nothing_and_a_binary_one_is_refused(tmp_path: Path) -> None:
    assert resolve(RunConfig, {}, yaml_file(tmp_path, "")) == RunConfig()
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="not valid YAML"):
        resolve(RunConfig, {}, path)


def test_a_missing_setting_says_how_to_give_it() -> None:
    with pytest.raises(InputError, match="'dictionary' is missing; give it as --dictionary"):
        resolve(EvaluateConfig, {})


def test_a_configuration_survives_its_own_file(tmp_path: Path) -> None:
    import yaml

    config = resolve(RunConfig, {"k": (3, 5), "site": "layers.1.mlp_out", "learning_rate": 3e-4, "out": tmp_path / "o"})
    file = yaml_file(tmp_path, yaml.safe_dump(plain(config)))
    assert resolve(RunConfig, {}, file) == config


def test_changed_keys_are_named_but_for_those_that_may_change() -> None:
    before, after = plain(RunConfig()), plain(RunConfig(tokens=5, seed=1, resume=True))
    assert changed_keys(before, after, RunConfig.may_change) == ["seed", "tokens"]
