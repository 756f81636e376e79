"""Names of releases: what other tools call a dictionary, and tables of one's own."""

from __future__ import annotations

import os

import pytest

from saeworks.dictionaries.formats.releases import Place, is_release, place_of, resolve
from saeworks.errors import InputError


@pytest.mark.parametrize(
    ("release", "sae_id", "repo", "path"),
    [
        ("gemma-scope-9b-it-res", "layer_9/width_16k/average_l0_88", "google/gemma-scope-9b-it-res", None),
        ("gemma-scope-2-4b-it-att-all", "layer_3_width_16k_l0_big", "google/gemma-scope-2-4b-it", "attn_out_all/{}"),
        ("gemma-scope-2-1b-pt-transcoders", "transcoder/layer_7_width_16k_l0_big", "google/gemma-scope-2-1b-pt", None),
        ("llama_scope_lxm_32x", "l31m_32x", "fnlp/Llama3_1-8B-Base-LXM-32x", "Llama3_1-8B-Base-L31M-32x"),
        ("gpt2-small-res-jb", "blocks.8.hook_resid_pre", "jbloom/GPT2-Small-SAEs-Reformatted", None),
        (
            "gpt2-small-resid-post-v5-32k",
            "blocks.5.hook_resid_post",
            "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs",
            "v5_32k_layer_5.pt",
        ),
        (
            "gpt2-small-mlp-out-v5-128k",
            "blocks.5.hook_mlp_out",
            "jbloom/GPT2-Small-OAI-v5-128k-mlp-out-SAEs",
            "v5_128k_layer_5",
        ),
        (
            "sae_bench_gemma-2-2b_topk_width-2pow12_date-1109",
            "blocks.12.hook_resid_post__trainer_3_step_97",
            "canrager/saebench_gemma-2-2b_width-2pow12_date-1109",
            "gemma-2-2b_topk_width-2pow12_date-1109/resid_post_layer_12_checkpoints/trainer_3_step_97",
        ),
    ],
)
def test_published_releases(release: str, sae_id: str, repo: str, path: str | None) -> None:
    found = resolve(release, sae_id)
    assert (found.repo, found.path) == (repo, sae_id if path is None else path.replace("{}", sae_id))
    assert is_release(release)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("owner/name", Place("owner/name")),
        ("owner/name/a/b.pt", Place("owner/name", "a/b.pt")),
        ("hf://owner/name@v1.0/a/", Place("owner/name", "a", "v1.0")),
        ("/owner/name", None),
        ("../owner/name", None),
        ("~/owner/name", None),
        ("owner", None),
        ("owner/..", None),
        ("owner/na me", None),
    ],
)
def test_names_on_the_hub(name: str, place: Place | None) -> None:
    assert place_of(name) == place


def test_a_repository_is_a_release_of_its_folders() -> None:
    assert resolve("owner/name", "layers.3") == Place("owner/name", "layers.3")


@pytest.mark.parametrize(
    ("release", "sae_id", "words"),
    [
        ("gpt2-small-res-jbb", "blocks.8.hook_resid_pre", "Did you mean 'gpt2-small-res-jb'.*SAEWORKS_RELEASES"),
        ("gpt2-small-resid-post-v5-32k", "blocks.x", "has no dictionary called 'blocks.x'"),
    ],
)
def test_unknown_names_are_sentences(release: str, sae_id: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve(release, sae_id)


def test_tables_of_ones_own_come_first(tmp_path, monkeypatch) -> None:
    mine, more = tmp_path / "mine.yaml", tmp_path / "more.yaml"
    entry = "- release: my-(.+)\n  id: layer (\\d+)\n  repo: me/{1}\n  path: 'l{2}'\n"
    mine.write_text(entry + "  hints: {site: 'layers.{2}.resid_post'}\n")
    more.write_text("- {release: gpt2-small-res-jb, repo: me/copy}\n")
    monkeypatch.setenv("SAEWORKS_RELEASES", f"{mine}{os.pathsep}{more}")
    assert resolve("my-saes", "layer 4") == Place("me/saes", "l4", hints={"site": "layers.4.resid_post"})
    assert resolve("gpt2-small-res-jb", "x").repo == "me/copy"
    assert resolve("gemma-scope-2b-pt-res", "layer_0/x").repo == "google/gemma-scope-2b-pt-res"
    mine.write_text("- {release: other, repo: me/other}\n")
    os.utime(mine, ns=(1, 1))
    assert not is_release("my-saes")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("release: x", "must hold a list"),
        ("- {release: x}", "without 'release' and 'repo'"),
        ("- {release: x, repo: a/b, sitee: 1}", "has the key 'sitee'"),
        ("- {release: 'x(', repo: a/b}", "which is none"),
        ("- {release: x, repo: 'a/{3}'}", "asks for more groups"),
        ("- [", "not valid YAML"),
    ],
)
def test_tables_that_make_no_sense_are_sentences(tmp_path, monkeypatch, text: str, words: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    monkeypatch.setenv("SAEWORKS_RELEASES", str(tmp_path / "t.yaml"))
    with pytest.raises(InputError, match=words):
        resolve("x", "y")


def test_a_table_that_is_not_there_is_a_sentence(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SAEWORKS_RELEASES", str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="named by SAEWORKS_RELEASES, does not exist"):
        is_release("x")
