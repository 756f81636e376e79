"""Dictionaries on a hub (here one on a loopback port): fetched whole, cached, named by their commit, and sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from format_cases import assert_same, dictionary

import saeworks
from hub_server import Hub, hub_in_use
from saeworks.dictionaries.formats.hub import upload
from saeworks.dictionaries.formats.registry import FORMATS, write
from saeworks.dictionaries.formats.releases import Place
from saeworks.errors import InputError, RunError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_in_use(monkeypatch, tmp_path / "cache") as made:
        yield made


def put(hub: Hub, tmp_path: Path, repo: str, path: str, kind: str, **settings: object):
    d = dictionary(**settings)
    write(d, tmp_path / "made" / repo / path, kind)
    hub.add(repo, tmp_path / "made" / repo / path, path)
    return d


WRITTEN = {
    "saeworks": {"architecture": "topk"},
    "saelens": {"architecture": "jumprelu"},
    "dictionary_learning": {"architecture": "topk"},
    "sparsify": {"architecture": "groupmax"},
    "gemma_scope": {"architecture": "jumprelu"},
    "gemma_scope_2": {"architecture": "jumprelu", "d_out": 4, "skip": True},
    "llama_scope": {"architecture": "relu"},
    "openai": {"architecture": "relu"},
}


def test_every_format_that_is_written_is_tested_here() -> None:
    assert set(WRITTEN) == {known.name for known in FORMATS if known.save is not None}


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("path", ["layer_3/small", ""])
def test_a_folder_of_any_format_is_fetched(hub: Hub, tmp_path: Path, kind: str, path: str) -> None:
    d = put(hub, tmp_path, "some-one/saes", path, kind, **WRITTEN[kind])
    hub.repositories["some-one/saes"][f"{path}/optimizer.pt".lstrip("/")] = b"0" * 1000
    found = saeworks.load(f"some-one/saes/{path}".rstrip("/"))
    assert_same(d, found, latents=kind != "llama_scope")
    if kind != "saeworks":
        origin = found.cfg.metadata["origin"]
        assert origin == {"repo": "some-one/saes", "revision": hub.commit("some-one/saes"), "path": path}
    assert not any("optimizer" in asked for asked in hub.asked)


def test_what_was_fetched_is_read_again_without_a_hub(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    d = put(hub, tmp_path, "some-one/saes", "a", "saelens", architecture="relu")
    saeworks.load("some-one/saes/a")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(hub.asked)
    found = saeworks.load("some-one/saes/a")
    assert_same(d, found)
    assert found.cfg.metadata["origin"]["revision"] == hub.commit("some-one/saes")
    assert len(hub.asked) == count
    with pytest.raises(InputError, match=r"'some-one/saes/b' does not exist here.*try again online"):
        saeworks.load("some-one/saes/b")
    with pytest.raises(InputError, match="the hub cannot be reached, nor has its cache"):
        saeworks.load("some-one/else/a")


def test_a_file_is_fetched_with_the_settings_beside_it_or_above_it(hub: Hub, tmp_path: Path) -> None:
    d = put(hub, tmp_path, "some-one/dl", "trainer_0", "dictionary_learning", architecture="topk")
    files = hub.repositories["some-one/dl"]
    files["trainer_0/checkpoints/ae_100.pt"] = files["trainer_0/ae.pt"]
    assert_same(d, saeworks.load("some-one/dl/trainer_0/ae.pt"))
    assert_same(d, saeworks.load("some-one/dl/trainer_0/checkpoints/ae_100.pt"))
    with pytest.raises(InputError, match=r"has no file 'trainer_0/b\.pt'"):
        saeworks.load("some-one/dl/trainer_0/b.pt")


def test_a_revision_is_asked_for_by_its_name(hub: Hub, tmp_path: Path) -> None:
    put(hub, tmp_path, "some-one/saes", "a", "saelens", architecture="relu")
    commit = hub.commit("some-one/saes")
    assert saeworks.load(f"some-one/saes@{commit}/a").cfg.metadata["origin"]["revision"] == commit
    with pytest.raises(InputError, match="has no revision 'v9'"):
        saeworks.load("some-one/saes@v9/a")


def test_a_release_is_a_repository_and_a_path_in_it(hub: Hub, tmp_path: Path) -> None:
    repo, low, high = "google/gemma-scope-2b-pt-res", "average_l0_38", "average_l0_105"
    for l0 in (low, high):
        put(hub, tmp_path, repo, f"layer_20/width_16k/{l0}", "gemma_scope", architecture="jumprelu", metadata={})
    canonical = saeworks.load("gemma-scope-2b-pt-res-canonical", sae_id="layer_20/width_16k/canonical")
    assert canonical.cfg.metadata["origin"]["path"] == f"layer_20/width_16k/{high}"
    assert canonical.cfg.metadata["site"] == "layers.20.resid_post"
    one = saeworks.load(f"gemma-scope-2b-pt-res:layer_20/width_16k/{low}")
    assert one.cfg.metadata["claimed"] == {"l0": 38.0}
    assert one.cfg.metadata["model_name"] == "google/gemma-2-2b"


def test_hints_of_the_caller_win_over_those_of_the_release(hub: Hub, tmp_path: Path) -> None:
    path = "Llama3_1-8B-Base-L3R-8x"
    put(hub, tmp_path, "fnlp/Llama3_1-8B-Base-LXR-8x", path, "llama_scope", architecture="relu", metadata={})
    assert saeworks.load("llama_scope_lxr_8x:l3r_8x").cfg.metadata["model_name"] == "meta-llama/Llama-3.1-8B"
    given = saeworks.load("llama_scope_lxr_8x", sae_id="l3r_8x", hints={"model_name": "local"})
    assert given.cfg.metadata["model_name"] == "local"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("some-one/none/a", "neither here nor on the hub"),
        ("some-one/saes/b", "has no 'b'"),
        ("some-one/saes", "no dictionary of a known format, but a"),
        ("some-one/gated/a", "accept its terms"),
        ("some-one/closed/a", r"refuses 'some-one/closed/a' \(401\)|neither here nor on the hub"),
        ("gemma-scope-2b-pt-res:layer_1/none", "neither here nor on the hub"),
        ("some-one/saes/../../x", "leads out of its folder"),
    ],
)
def test_what_a_hub_refuses_is_a_sentence(hub: Hub, tmp_path: Path, name: str, words: str) -> None:
    put(hub, tmp_path, "some-one/saes", "a", "saelens", architecture="relu")
    hub.refuse = {"some-one/gated": 403, "some-one/closed": 401}
    with pytest.raises(InputError, match=words):
        saeworks.load(name)


def test_a_broken_hub_is_no_fault_of_the_input(hub: Hub) -> None:
    hub.refuse = {"some-one/saes": 500}
    with pytest.raises(RunError, match="answered 500"):
        saeworks.load("some-one/saes/a")


def test_a_connection_that_breaks_off_is_no_fault_of_the_input(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    put(hub, tmp_path, "some-one/saes", "a", "saelens", architecture="relu")

    def cut(*_: object, **__: object) -> None:
        from huggingface_hub.errors import HTTPError

        raise HTTPError("peer closed connection")

    # What its client raises in the end; before that it tries for half a minute.
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_tree", cut)
    with pytest.raises(RunError, match="broke off"):
        saeworks.load("some-one/saes/a")


@pytest.mark.parametrize("evil", ["../../evil.json", "/etc/cfg.json"])
def test_a_listing_with_names_that_lead_out_is_refused(hub: Hub, tmp_path: Path, monkeypatch, evil: str) -> None:
    put(hub, tmp_path, "some-one/saes", "", "saelens", architecture="relu")
    rows = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in ("cfg.json", evil)]
    rows.append({"type": "file", "path": "sae_weights.safetensors", "size": 1, "oid": "0" * 40})
    monkeypatch.setattr(hub, "tree", lambda repo, folder: rows)
    # What is not asked for is not fetched; what is asked for by a name that leads out is refused.
    assert saeworks.load("some-one/saes").cfg.metadata["format"] == "saelens"
    monkeypatch.setattr("saeworks.dictionaries.formats.hub._wanted", lambda *_: [evil])
    with pytest.raises(InputError, match="leads out of its folder"):
        saeworks.load("some-one/saes")
    assert not (tmp_path / "evil.json").exists()


def test_a_folder_is_sent_in_one_commit_and_comes_back(hub: Hub, tmp_path: Path) -> None:
    d = dictionary("topk")
    write(d, tmp_path / "out", "sparsify")
    (tmp_path / "out" / "README.md").write_text("# A dictionary\n")
    url = upload(tmp_path / "out", Place("some-one/new", "layers.3"), private=True, message="A dictionary")
    assert url == f"{hub.endpoint}/some-one/new/commit/{hub.commit('some-one/new')}"
    names = {f"layers.3/{name}" for name in ("cfg.json", "sae.safetensors", "README.md", "saeworks.json")}
    assert set(hub.repositories["some-one/new"]) == names
    assert hub.created[0]["visibility"] == "private" if "visibility" in hub.created[0] else hub.created[0]["private"]
    assert sum(asked.startswith("POST api/models/some-one/new/commit") for asked in hub.asked) == 1
    assert_same(d, saeworks.load("some-one/new/layers.3"))


def test_without_a_hub_nothing_is_sent(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    dictionary().save(tmp_path / "out")
    with pytest.raises(InputError, match="cannot be written"):
        upload(tmp_path / "out", Place("some-one/new"), private=False, message="m")
    assert hub.asked == []


def test_latents_on_the_hub_keep_their_numbers(hub: Hub, tmp_path: Path) -> None:
    """The native format comes back with the same bits."""
    d = put(hub, tmp_path, "some-one/saes", "a", "saeworks", architecture="relu")
    again = saeworks.load("some-one/saes/a")
    assert again.fingerprint() == d.fingerprint()
    assert torch.equal(again.W_enc, d.W_enc)
