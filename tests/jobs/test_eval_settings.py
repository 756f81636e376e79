"""Settings of single evals: as flags and in files, checked before anything is measured."""

from pathlib import Path

import pytest

from saeworks.errors import InputError
from saeworks.evals.runner import REGISTRY
from saeworks.jobs.config import ALL_EVALS, EvaluateConfig, resolve
from saeworks.jobs.evaluate import eval_config


def config(**keys: object) -> EvaluateConfig:
    return resolve(EvaluateConfig, {"dictionary": "somewhere", **keys})


def test_every_eval_can_be_named() -> None:
    assert set(ALL_EVALS) == set(REGISTRY)


def test_a_setting_reaches_its_eval_and_no_other() -> None:
    made = config(settings=["sparse_probing.max_classes=3", "sparse_probing.k_values=[1, 7]"], seed=4)
    probing = eval_config("sparse_probing", made, "layers.2.resid_post")
    assert (probing.max_classes, probing.k_values, probing.seeds) == (3, (1, 7), (4, 5, 6))
    assert probing.site == "layers.2.resid_post"
    assert eval_config("core", made, None).seed == 4


def test_settings_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("settings:\n  core:\n    tokens: 99\n", encoding="utf-8")
    made = resolve(EvaluateConfig, {"dictionary": "somewhere"}, file)
    assert eval_config("core", made, None).tokens == 99


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("sparse_probing.max_clases=3", "has no setting 'max_clases'. Did you mean 'max_classes'"),
        ("sparse_probing.max_classes=one", "'max_classes' is 'one', but a whole number is expected"),
        ("sparse_probing.max_classes=1", "must be at least 2"),
    ],
)
def test_a_wrong_setting_of_an_eval_is_a_sentence(setting: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        eval_config("sparse_probing", config(settings=[setting]), None)
    assert says in str(error.value)
    assert "'sparse_probing'" in str(error.value)


@pytest.mark.parametrize("setting", ["max_classes=3", "sparse_probing.max_classes", "sparse_probing.=3", ".k=3"])
def test_what_is_no_setting_is_shown_the_form(setting: str) -> None:
    with pytest.raises(InputError, match=r"EVAL\.KEY=VALUE"):
        config(settings=[setting])


def test_a_value_that_cannot_be_read_is_a_sentence() -> None:
    with pytest.raises(InputError, match=r"the value in 'core\.tokens=\[1' is not valid YAML"):
        config(settings=["core.tokens=[1"])


@pytest.mark.parametrize("name", [name for name in ALL_EVALS if name not in ("core", "latents")])
def test_an_eval_without_seeds_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="at least one value is expected"):
        eval_config(name, config(settings=[f"{name}.seeds=[]"]), None)


def test_a_setting_of_an_unknown_eval_is_refused() -> None:
    with pytest.raises(InputError, match="unknown"):
        config(settings=["sparse_probin.max_classes=3"])
