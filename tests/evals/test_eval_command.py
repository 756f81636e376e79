"""``saeworks eval`` from the command line: what cannot be measured is one sentence, and what means little is said."""

import csv
import json
import shutil

import pytest
import torch
from judge_server import Server, serving

from saeworks.cli.app import main
from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.jobs.config import ALL_EVALS
from saeworks.jobs.eval_data import LABEL_FREE, TEXT_EVALS
from saeworks.jobs.eval_help import QUESTIONS
from saeworks.results.headlines import HEADLINES

SITE = "layers.1.resid_post"
#: Evals whose texts need labels.
LABELLED = ("sparse_probing", "scr", "tpp", "shift", "unlearning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Kind of dictionary → its folder."""
    folder, draw = tmp_path_factory.mktemp("dictionaries"), torch.Generator().manual_seed(0)
    out = {}
    for kind, width, changes in (
        ("plain", 16, {"k": 4}),
        ("narrow", 8, {"k": 4}),
        ("transcoder", 16, {"k": 4, "d_out": 16}),
        ("crosscoder", 32, {"k": 4, "sources": ("layers.0.resid_post", SITE)}),
    ):
        rows = torch.nn.functional.normalize(torch.randn(32, width, generator=draw), dim=-1)
        free = {"apply_b_dec_to_input": False} if kind.endswith("coder") else {}
        cfg = DictionaryConfig(architecture="topk", d_in=width, d_sae=32, metadata={"site": SITE}, **changes, **free)
        Dictionary(cfg, rows.T, rows, torch.zeros(32), torch.zeros(width)).save(folder / kind)
        out[kind] = folder / kind
    return out


def flags(dictionary, model, data, out):
    given = {"--dictionary": dictionary, "--model": model, "--data": data, "--out": out, "--device": "cpu"}
    return [str(part) for pair in given.items() for part in pair] + ["--context-length", "32"]


@pytest.fixture
def refused(capsys, tmp_path, saved, tiny_model_directory, tiny_texts):
    """Run an eval that must be refused with exit code 2 and one line; returns that line."""

    def run(name, *more, dictionary="plain", model=tiny_model_directory, data=tiny_texts):
        assert main(["eval", name, *flags(saved[dictionary], model, data, tmp_path / "out"), *map(str, more)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "Traceback" not in printed.err
        assert not list((tmp_path / "out").rglob("*.json"))
        return printed.err.strip().splitlines()[-1]

    return run


def table(path, rows, columns=("text", "topic", "cue")):
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([columns, *rows])
    return path


def sentences(count, classes):
    words = ["the dog runs", "a bird sings", "the old river", "a red house"]
    return [(f"{words[i % 4]} {i}", classes[i % len(classes)], "xy"[i // 2 % 2]) for i in range(count)]


@pytest.mark.parametrize("name", ALL_EVALS)
def test_the_help_of_every_eval_says_what_its_numbers_mean_and_which_way_is_better(name, capsys):
    assert main(["eval", name, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    eval_type, question = QUESTIONS[name]
    assert question in said
    own = [h for h in HEADLINES if h.eval == eval_type]
    assert own
    for h in own:
        assert f"{h.column} ({h.direction}): {h.meaning}" in said


@pytest.mark.parametrize("name", ["core", "latents", *LABELLED[:4], *LABEL_FREE[::2]])
def test_a_dictionary_of_another_width(name, refused):
    said = refused(name, "--label-column", "topic", dictionary="narrow")
    # Where two labels are needed, the texts of one are refused first.
    assert "width 8" in said or "second label" in said or "three" in said


@pytest.mark.parametrize("name", ["core", "latents", *LABELLED, "autointerp", "mdl"])
@pytest.mark.parametrize("kind", ["transcoder", "crosscoder"])
def test_what_reads_or_writes_several_sites(name, kind, refused):
    assert f"it is a {kind}, which" in refused(name, "--label-column", "topic", dictionary=kind)


@pytest.mark.parametrize("name", LABELLED)
def test_labels_that_are_missing(name, refused, tmp_path):
    assert f"{name} needs labels: name the column that holds them with --label-column." in refused(name)
    assert "topic" in refused(name, "--label-column", "topics")
    rows = [(text, "", "") for text, _, _ in sentences(60, "ab")]
    assert "label" in refused(name, "--label-column", "topic", data=table(tmp_path / "empty.csv", rows))


@pytest.mark.parametrize("name", LABELLED[:4])
def test_texts_of_one_class(name, refused, tmp_path):
    data = table(tmp_path / "one.csv", sentences(120, ["only"]))
    said = refused(name, "--label-column", "topic", data=data)
    assert "class" in said or "topic" in said


@pytest.mark.parametrize("name", ["core", "latents", *LABELLED, *LABEL_FREE])
def test_files_without_a_row(name, refused, tmp_path):
    said = refused(name, "--label-column", "topic", data=table(tmp_path / "none.csv", []))
    assert "none.csv" in said


def test_questions_of_an_evals_own(refused):
    for name in ("absorption", "ravel"):
        assert "asks questions of its own making" in refused(name)


def test_activations_that_are_not_numbers(refused, tiny_model_directory, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_directory, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][:] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    data = table(tmp_path / "two.csv", sentences(400, "abc"))
    for name in ("core", "tpp", "autointerp", "mdl"):
        assert "not finite (NaN or infinity) for document" in refused(
            name, "--label-column", "topic", model=broken, data=data
        )


def test_settings_that_cannot_be(refused):
    said = refused("sparse_probing", "--label-column", "topic", "--set", "sparse_probing.k_values=[0]")
    assert "'k_values' is 0, but it must be greater than 0" in said
    said = refused("scr", "--label-column", "topic", "--set", "scr.seeds=[1, 1]")
    assert "a value stands there twice" in said


def test_an_eval_without_labels_costs_no_other(saved, tiny_model_directory, tiny_texts, tmp_path, capsys):
    given = flags(saved["plain"], tiny_model_directory, tiny_texts, tmp_path / "out")
    small = ["--set", "mdl.texts=20", "--set", "mdl.num_bins=[4]", "--set", "mdl.k=[4]", "--set", "mdl.resamples=10"]
    assert main(["eval", "latents", "mdl", "scr", "ravel", *given, *small, "--json"]) == 0
    printed = capsys.readouterr()
    made = json.loads(printed.out)
    assert "--label-column" in made["skipped"]["scr"]
    assert "questions of its own" in made["skipped"]["ravel"]
    assert made["table"][0]["bits_per_token"] > 0
    note = "latents of plain: The documents carry no concept spans."
    assert made["notes"] == [note]
    assert note in printed.err


def test_decoder_rows_of_any_dictionary_have_a_structure(saved, tiny_model_directory, tiny_texts, tmp_path, capsys):
    given = flags(saved["transcoder"], tiny_model_directory, tiny_texts, tmp_path / "out")
    given += ["--dictionary", str(saved["plain"]), "--eval-tokens", "64", "--set", "core.resamples=10"]
    given += ["--set", "meta_structure.train_steps=2", "--set", "meta_structure.seeds=[0]"]
    assert main(["eval", "core", "meta_structure", *given, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert list(made["skipped"]) == ["core · transcoder"]
    transcoder, plain = made["table"]
    assert (transcoder["l0"], plain["l0"]) == (None, 4)
    assert transcoder["meta_structure"] is not None
    assert plain["meta_structure"] is not None


def test_a_judge_that_always_says_the_same(saved, tiny_model_directory, tiny_texts, tmp_path, capsys):
    settings = {
        **{"judge_model": "m", "judge_cache": tmp_path / "answers", "seeds": "[0]", "n_latents": 6, "buffer": 2},
        **{"total_tokens": 3000, "dead_latent_threshold": 5, "resamples": 20},
    }
    with serving(Server()) as server:
        given = flags(saved["plain"], tiny_model_directory, tiny_texts, tmp_path / "out")
        for key, value in {"judge": server.url, **settings}.items():
            given += ["--set", f"autointerp.{key}={value}"]
        assert main(["eval", "autointerp", *given, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    (note,) = made["notes"]
    assert "the judge named the windows 1, 2 in each of 6 answers" in note
    assert "nothing of the latents" in note


@pytest.mark.parametrize(
    ("name", "columns"), [("core", {"l0", "kl_div_score", "frac_alive"}), ("latents", {"concept_f1"})]
)
def test_a_single_eval_shows_all_of_its_main_numbers(
    name, columns, saved, tiny_model_directory, tiny_texts, tmp_path, capsys
):
    given = flags(saved["plain"], tiny_model_directory, tiny_texts, tmp_path / "out")
    assert main(["eval", name, *given, "--eval-tokens", "64", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["table"]
    assert columns <= set(row)


def test_which_evals_need_labels():
    assert set(TEXT_EVALS) | set(LABEL_FREE) | set(LABELLED) | {"absorption", "ravel"} == set(ALL_EVALS)
