"""``convert``, ``push``, ``pull``: what is written is compared, refused with a reason, and carries a card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import saeworks
from hub_server import Hub, hub_in_use
from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.dictionaries.formats import registry
from saeworks.errors import InputError, RunError
from saeworks.files import write_json
from saeworks.jobs.convert import convert
from saeworks.jobs.dictionary_card import local_paths
from saeworks.jobs.share import pull, push

ABOUT = {"model_name": "EleutherAI/pythia-70m", "site": "layers.3.resid_post", "recipe": "topk", "tokens": 1000}


def dictionary(architecture: str = "topk", **metadata: object) -> Dictionary:
    g = torch.Generator().manual_seed(0)
    cfg = DictionaryConfig.model_validate(
        {"architecture": architecture, "d_in": 6, "d_sae": 16, "metadata": {**ABOUT, **metadata}}
        | ({"k": 4} if architecture == "topk" else {})
    )
    W = torch.randn(16, 6, generator=g)
    return Dictionary(cfg, W.T, W, torch.randn(16, generator=g), torch.randn(6, generator=g))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_in_use(monkeypatch, tmp_path / "cache") as made:
        yield made


def test_a_chain_of_formats_ends_where_it_began(tmp_path: Path) -> None:
    d, x = dictionary(), torch.randn(50, 6)
    d.save(tmp_path / "0")
    chain = ["saelens", "dictionary_learning", "sparsify", "llama_scope", "saeworks"]
    for number, kind in enumerate(chain):
        done = convert(str(tmp_path / str(number)), tmp_path / str(number + 1), kind)
        assert (done["to"], done["from"]) == (kind, chain[number - 1] if number else "saeworks")
        assert done["difference"] < 1e-6
        assert done["tokens"] > 100
        assert {"site": "layers.3.resid_post", "model": "EleutherAI/pythia-70m"}.items() <= done["dictionary"].items()
    last = saeworks.load(tmp_path / str(len(chain)))
    assert torch.allclose(d(x), last(x), atol=1e-5)
    assert {**ABOUT}.items() <= last.cfg.metadata.items()


def test_hints_say_what_files_do_not(tmp_path: Path) -> None:
    dictionary("relu").replace({"metadata": {}}).save(tmp_path / "a")
    convert(str(tmp_path / "a"), tmp_path / "b", "openai")
    (tmp_path / "b" / "saeworks.json").unlink()
    done = convert(
        str(tmp_path / "b"), tmp_path / "c", "saeworks", hints={"site": "layers.2.mlp_out", "site_out": None}
    )
    assert done["dictionary"]["site"] == "layers.2.mlp_out"
    assert saeworks.load(tmp_path / "c").cfg.metadata == {"site": "layers.2.mlp_out", "format": "openai"}


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("gemma_scope", "selects by thresholds"),
        ("llama_scope_2", "only read here"),
        ("saelense", "Did you mean 'saelens'"),
    ],
)
def test_what_cannot_be_said_is_refused_and_nothing_is_left(tmp_path: Path, to: str, words: str) -> None:
    dictionary().save(tmp_path / "a")
    with pytest.raises(InputError, match=words):
        convert(str(tmp_path / "a"), tmp_path / "b", to)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    dictionary().save(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    for there in (tmp_path / "b", tmp_path / "b" / "thesis.txt"):
        with pytest.raises(InputError, match="exists already"):
            convert(str(tmp_path / "a"), there, "saelens")
    assert (tmp_path / "b" / "thesis.txt").read_text() == "mine"


def test_a_copy_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary().save(tmp_path / "a")
    read = registry.read
    monkeypatch.setattr(registry, "read", lambda *a: (d := read(*a)).replace(b_dec=d.b_dec + 0.01))
    with pytest.raises(RunError, match="nothing was kept"):
        convert(str(tmp_path / "a"), tmp_path / "b", "saelens")
    assert not (tmp_path / "b").exists()


def test_half_precision_is_widened_before_it_is_rewritten(tmp_path: Path) -> None:
    d = dictionary()
    half = Dictionary(d.cfg, *(t.bfloat16() for t in (d.W_enc, d.W_dec, d.b_enc, d.b_dec)))
    assert registry.write(half, tmp_path / "b", "sparsify").same
    assert saeworks.load(tmp_path / "b").dtype == torch.float32


def header(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---")[1])


def test_a_dictionary_is_pushed_with_its_card_and_pulled_with_it(hub: Hub, tmp_path: Path) -> None:
    d = dictionary(recorded={"l0": 4.0, "explained_variance": 0.75, "tokens": 500.0}, data=["world"])
    d.save(tmp_path / "run" / "dictionaries" / "first")
    done = push(str(tmp_path / "run" / "dictionaries" / "first"), "some-one/saes/first", licence="mit", private=True)
    assert done["commit"].endswith(hub.commit("some-one/saes"))
    sent = hub.repositories["some-one/saes"]
    assert set(sent) == {"first/README.md", "first/cfg.json", "first/weights.safetensors"}
    card = sent["first/README.md"].decode()
    assert header(card) == {
        "library_name": "saeworks",
        "license": "mit",
        "base_model": "EleutherAI/pythia-70m",
        "tags": ["saeworks", "sparse-autoencoder", "interpretability", "topk"],
    }
    for told in (
        "`layers.3.resid_post`",
        "| recipe | topk |",
        "| l0 | 4 |",
        "0.75",
        'saeworks.load("some-one/saes/first")',
    ):
        assert told in card
    assert done["notes"] == []
    back = pull("some-one/saes/first", tmp_path / "back")
    assert back["card"]
    assert (tmp_path / "back" / "README.md").read_text() == card
    assert saeworks.load(tmp_path / "back").fingerprint() == d.fingerprint()


def test_the_card_has_what_the_workspace_measured(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "run" / "dictionaries" / "first"
    dictionary().save(path)
    metrics = {"sparsity": {"l0": 3.5}, "reconstruction_quality": {"explained_variance": 0.5}}
    result = {"eval_type_id": "core", "eval_config": {}, "eval_result_metrics": metrics}
    (tmp_path / "run" / "results" / "core").mkdir(parents=True)
    write_json(tmp_path / "run" / "results" / "core" / "first_eval_results.json", result)
    card = push(str(path), "some-one/saes", dry_run=True)["card"]
    assert "| l0 | 3.5 |" in card
    assert "| explained_variance | 0.5 |" in card
    assert hub.asked == []


def test_without_a_licence_none_is_made_up(hub: Hub, tmp_path: Path) -> None:
    local = str(tmp_path / "models" / "mine")
    dictionary(model_name=local).save(tmp_path / "a")
    done = push(str(tmp_path / "a"), "some-one/saes", to="saelens")
    assert "license" not in header(done["card"])
    assert "base_model" not in header(done["card"])
    assert "Not stated" in done["card"]
    assert local not in done["card"]
    assert [note.split()[0] for note in done["notes"]] == ["'model_name'", "No"]
    assert json.loads(hub.repositories["some-one/saes"]["cfg.json"])["architecture"] == "topk"


@pytest.mark.parametrize("repo", ["name", "/a/b", "a b/c"])
def test_what_is_no_repository_is_a_sentence(tmp_path: Path, repo: str) -> None:
    dictionary().save(tmp_path / "a")
    with pytest.raises(InputError, match="is no place on a hub"):
        push(str(tmp_path / "a"), repo)


def test_a_place_outside_the_repository_is_refused(tmp_path: Path) -> None:
    dictionary().save(tmp_path / "a")
    with pytest.raises(InputError, match="leads out of its folder"):
        push(str(tmp_path / "a"), "some-one/saes/x/../../y", dry_run=True)


@pytest.mark.parametrize("factor", [0.0, -2.0, float("nan"), float("inf")])
def test_an_impossible_factor_is_refused_whether_a_format_takes_one_or_not(tmp_path: Path, factor: float) -> None:
    dictionary().save(tmp_path / "a")
    with pytest.raises(InputError, match="by a positive number"):
        convert(str(tmp_path / "a"), tmp_path / "b", "saelens", hints={"norm_scaling_factor": factor})
    assert not (tmp_path / "b").exists()


def test_a_refused_push_is_a_sentence(hub: Hub, tmp_path: Path) -> None:
    hub.refuse = {"some-one/saes": 403}
    dictionary().save(tmp_path / "a")
    with pytest.raises(InputError, match=r"accept its terms|refuses"):
        push(str(tmp_path / "a"), "some-one/saes")


def test_what_is_here_is_not_pulled(tmp_path: Path) -> None:
    dictionary().save(tmp_path / "a")
    with pytest.raises(InputError, match="is here already"):
        pull(str(tmp_path / "a"), tmp_path / "b")


def test_a_release_is_pulled_by_its_name_without_a_card(hub: Hub, tmp_path: Path) -> None:
    registry.write(dictionary("relu"), tmp_path / "made", "gemma_scope")
    hub.add("google/gemma-scope-2b-pt-res", tmp_path / "made", "layer_3/width_16k/average_l0_50")
    done = pull("gemma-scope-2b-pt-res", tmp_path / "b", sae_id="layer_3/width_16k/average_l0_50")
    assert (done["from"], done["to"], done["card"]) == ("gemma_scope", "saeworks", False)
    assert saeworks.load(tmp_path / "b").cfg.metadata["claimed"] == {"l0": 50.0}


def test_a_place_that_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    dictionary().save(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Not a directory"):
        convert(str(tmp_path / "a"), tmp_path / "file" / "b", "saelens")
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "away")
    with pytest.raises(RunError, match="cannot be written"):
        convert(str(tmp_path / "a"), tmp_path / "link" / "b", "saelens")


def test_hints_are_heard_for_files_of_ours_as_well(tmp_path: Path) -> None:
    dictionary(site=None, model_name=None).save(tmp_path / "a")
    loaded = saeworks.load(tmp_path / "a")
    said = {"model_name": "gpt2", "site": "layers.2.mlp_out"}
    assert said.items() <= saeworks.load(tmp_path / "a", hints=said).cfg.metadata.items()
    assert loaded.cfg.metadata["site"] is None
    assert "format" not in loaded.cfg.metadata


def test_places_on_this_machine_are_found_however_deep_they_lie() -> None:
    known = {"a": {"b": [{"c": "/home/me/data"}]}, "d": ["x", "/tmp/y"], "e": "owner/name", "f": 3}
    assert local_paths(known) == ["a", "d"]
