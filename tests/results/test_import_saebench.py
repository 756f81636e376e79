"""SAEBench's result files of several vintages become results and rows; bad ones become sentences."""

import json

import pytest

from saeworks.errors import InputError
from saeworks.results.dictionary_table import dictionary_rows, side_by_side
from saeworks.results.envelope import Result, read_results
from saeworks.results.headlines import HEADLINES, headline
from saeworks.results.import_saebench import import_saebench, read_saebench

RELEASE = "saebench_gemma-2-2b_width-2pow14_date-0107"
IDENTIFIER = "BatchTopK_gemma-2-2b__0108/resid_post_layer_12/trainer_3"
CFG = {
    "model_name": "gemma-2-2b",
    "d_in": 2304,
    "d_sae": 16384,
    "hook_layer": 12,
    "hook_name": "blocks.12.hook_resid_post",
    "architecture": "batch_topk",
    "training_tokens": 499998720,
    "dtype": "bfloat16",
}


def core_metrics(l0=81.2, score=0.981):
    return {
        "model_behavior_preservation": {"kl_div_score": 0.98, "kl_div_with_ablation": 10.06, "kl_div_with_sae": 0.2},
        "model_performance_preservation": {"ce_loss_score": score, "ce_loss_without_sae": 2.9375},
        "reconstruction_quality": {"explained_variance": 0.76, "mse": 1.5, "cossim": -1.0},
        "shrinkage": {"l2_ratio": 0.9},
        "sparsity": {"l0": l0, "l1": 310.0},
        "token_stats": {"total_tokens_eval_reconstruction": 409600},
        "misc_metrics": {"frac_alive": 0.97},
    }


def record(eval_type, metrics, **changed):
    fields = {
        "eval_type_id": eval_type,
        "eval_config": {"random_seed": 42, "model_name": "gemma-2-2b"},
        "eval_id": "0c057d5e-973e-410e-8e32-32569323b5e6",
        "datetime_epoch_millis": 1737046328000,
        "eval_result_metrics": metrics,
        "eval_result_details": [{"index": 0, "feature_density": 0.1}],
        "sae_bench_commit_hash": "8042bb3",
        "sae_lens_id": IDENTIFIER,
        "sae_lens_release_id": RELEASE,
        "sae_lens_version": "5.3.2",
        "sae_cfg_dict": CFG,
        "eval_result_unstructured": None,
    }
    return {k: v for k, v in {**fields, **changed}.items() if v != "absent"}


def put(folder, eval_name, value, name=None):
    name = name or f"{RELEASE}_{IDENTIFIER}".replace("/", "_") + "_eval_results.json"
    path = folder / eval_name / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "published"
    put(folder, "core", record("core", core_metrics()))
    sae = {
        "sae_test_accuracy": -1,
        "sae_top_1_test_accuracy": 0.739,
        "sae_top_5_test_accuracy": 0.84,
        "sae_top_10_test_accuracy": None,
    }
    put(folder, "sparse_probing", record("sparse_probing", {"llm": {"llm_test_accuracy": 0.9507}, "sae": sae}))
    put(folder, "scr", record("scr", {"scr_metrics": {"scr_metric_threshold_20": -1.0, "scr_dir1_threshold_20": 0.3}}))
    put(folder, "ravel", record("RAVEL", {"ravel": {"disentanglement_score": 0.679}}))
    return folder


def test_a_folder_becomes_results_with_one_name_per_dictionary(published):
    imported = import_saebench(published)
    assert [r.eval_type_id for r in imported.results] == ["core", "ravel", "scr", "sparse_probing"]
    assert not imported.problems
    core = imported.results[0]
    assert {r.sae_lens_id for r in imported.results} == {f"{RELEASE}/{IDENTIFIER}"}
    assert core.metric("sparsity", "l0") == 81.2
    assert core.metric("reconstruction_quality", "cossim") is None, "core writes -1 for NaN"
    assert core.definition_id == "saebench/core"
    assert core.sae_bench_commit_hash == "8042bb3"
    assert core.seed == 42
    assert core.eval_result_details == []
    scr, probing = imported.results[2:]
    assert scr.metric("scr_metrics", "scr_metric_threshold_20") == -1.0, "a score that may be -1"
    assert probing.metric("sae", "sae_test_accuracy") is None, "the probe on all latents was skipped"
    assert import_saebench(published, details=True).results[0].eval_result_details == [
        {"index": 0, "feature_density": 0.1}
    ]


def test_published_rows_stand_beside_own_ones(published, tmp_path):
    own = Result(
        eval_type_id="core",
        eval_config={"mode": "corrected"},
        eval_result_metrics=core_metrics(40.0, 0.95),
        sae_lens_id="topk_n1024_k32_s0",
        sae_cfg_dict={
            "architecture": "topk",
            "d_sae": 1024,
            "k": 32,
            "metadata": {"recipe": "topk", "k": 32, "seed": 0},
        },
    )
    own.write(tmp_path / "own")
    latents = Result(
        eval_type_id="latents",
        eval_config={},
        eval_result_metrics={"concepts": {"mean_best_latent_f1": 0.4}},
        sae_lens_id="topk_n1024_k32_s0",
    )
    latents.write(tmp_path / "own")
    rows, problems = side_by_side(tmp_path / "own", published)
    assert not problems
    ours, theirs = rows
    assert (ours["source"], ours["mode"], ours["architecture"], ours["setting"]) == (
        "saeworks",
        "corrected",
        "topk",
        32,
    )
    assert (ours["l0"], ours["concept_f1"], ours["ravel"]) == (40.0, 0.4, None)
    assert (theirs["source"], theirs["mode"], theirs["architecture"]) == ("SAEBench", "compat", "batch_topk")
    assert (theirs["width"], theirs["site"], theirs["model"]) == (16384, "layers.12.resid_post", "gemma-2-2b")
    assert (theirs["l0"], theirs["ce_loss_score"], theirs["probe_k1"], theirs["ravel"]) == (81.2, 0.981, 0.739, 0.679)
    assert theirs["tokens"] == 499998720
    assert list(ours) == list(theirs)
    with pytest.raises(InputError, match="No results were named"):
        side_by_side(None, None)
    with pytest.raises(InputError, match="measure a dictionary first"):
        side_by_side(tmp_path / "nothing", None)


def test_imported_results_can_be_written_and_read_as_ours(published, tmp_path):
    for result in import_saebench(published).results:
        result.write(tmp_path / "workspace" / "results")
    again = read_results(tmp_path / "workspace" / "results")
    assert dictionary_rows(again) == dictionary_rows(import_saebench(published).results)


@pytest.mark.parametrize(
    "field",
    [
        "eval_type_id",
        "eval_config",
        "eval_id",
        "datetime_epoch_millis",
        "sae_bench_commit_hash",
        "sae_lens_id",
        "sae_lens_release_id",
        "sae_lens_version",
        "sae_cfg_dict",
        "eval_result_details",
    ],
)
@pytest.mark.parametrize("value", ["absent", None, 7])
def test_any_field_but_the_metrics_may_be_missing_or_odd(tmp_path, field, value):
    path = put(tmp_path, "core", record("core", core_metrics(), **{field: value}))
    result, notes = read_saebench(path)
    assert not notes
    assert result.eval_type_id == "core"
    assert result.metric("sparsity", "l0") == 81.2
    assert result.sae_lens_id
    assert result.sae_cfg_dict["d_sae"] == 16384, "from the name where the config is missing"


def test_the_eval_is_told_by_its_metrics_or_its_folder(tmp_path):
    for metrics, expected in [
        ({"tpp_metrics": {"tpp_threshold_20_total_metric": 0.1}}, "tpp"),
        ({"mean": {"mean_absorption_fraction_score": 0.2}}, "absorption_first_letter"),
        ({"sae": {"sae_top_1_test_auc": 0.8}}, "sparse_probing_sae_probes"),
        ({"sae": {"sae_top_1_test_accuracy": 0.8}}, "sparse_probing"),
    ]:
        path = put(tmp_path, "somewhere", record("absent", metrics))
        assert read_saebench(path)[0].eval_type_id == expected
    assert (
        read_saebench(put(tmp_path, "absorption", record("absent", {"other": {"x": 1.0}})))[0].eval_type_id
        == "absorption_first_letter"
    )
    with pytest.raises(InputError, match="does not say which eval"):
        read_saebench(put(tmp_path, "unknown", record("absent", {"other": {"x": 1.0}})))


def test_configs_of_other_vintages_and_names_without_configs(tmp_path):
    nested = {
        "d_sae": 65536,
        "architecture": "jumprelu",
        "metadata": {"model_name": "gemma-2-2b", "hook_name": "blocks.5.hook_mlp_out"},
    }
    row = dictionary_rows(
        [read_saebench(put(tmp_path, "core", record("core", core_metrics(), sae_cfg_dict=nested)))[0]]
    )[0]
    assert (row["width"], row["architecture"], row["site"], row["tokens"]) == (
        65536,
        "jumprelu",
        "layers.5.mlp_out",
        None,
    )
    april = {**CFG, "architecture": "standard_april_update", "training_tokens": -100000}
    row = dictionary_rows(
        [read_saebench(put(tmp_path, "core", record("core", core_metrics(), sae_cfg_dict=april)))[0]]
    )[0]
    assert (row["architecture"], row["tokens"]) == ("relu_april", None)
    custom = record(
        "core",
        core_metrics(),
        sae_cfg_dict=None,
        sae_lens_id="custom_sae",
        sae_lens_release_id="gemma_MatryoshkaBatchTopK_width_65k_x",
    )
    row = dictionary_rows([read_saebench(put(tmp_path, "core", custom))[0]])[0]
    assert (row["dictionary"], row["architecture"], row["width"]) == (
        "gemma_MatryoshkaBatchTopK_width_65k_x",
        "matryoshka_batch_topk",
        65536,
    )


def test_bad_files_are_sentences_and_the_rest_is_read(published):
    put(published, "core", "{ not json", "a_eval_results.json")
    put(published, "core", "[1, 2]", "b_eval_results.json")
    put(published, "core", json.dumps({"eval_type_id": "core"}), "c_eval_results.json")
    put(published, "mdl", json.dumps({"eval_results": [{"num_bins": 8}]}), "d_eval_results.json")
    put(published, "core", record("core", {"sparsity": {"l0": None}}), "e_eval_results.json")
    odd = core_metrics() | {"extra": {"name": "text", "flag": True}, "loose": 3}
    put(published, "core", record("core", odd, sae_lens_id="other"), "f_eval_results.json")
    imported = import_saebench(published)
    assert len(imported.results) == 5
    text = "\n".join(imported.problems)
    for sentence in (
        "not valid JSON",
        "no JSON object",
        "no 'eval_result_metrics'",
        "description-length",
        "no number at all",
    ):
        assert text.count(sentence) == 1, sentence
    assert "extra.name, extra.flag, loose is no number" in text
    assert "extra" in next(r for r in imported.results if r.sae_lens_id.endswith("other")).eval_result_metrics


def test_files_that_are_no_text_and_numbers_that_are_none(published):
    folder = published / "core"
    (folder / "g_eval_results.json").mkdir()
    (folder / "h_eval_results.json").symlink_to(folder / "nowhere")
    (folder / "i_eval_results.json").write_bytes(b"")
    (folder / "j_eval_results.json").write_bytes(bytes(range(256)))
    (folder / "k_eval_results.json").write_text("[" * 100_000)
    marked = json.dumps(record("core", core_metrics(7.0), sae_lens_id="marked")).encode("utf-8-sig")
    (folder / "l_eval_results.json").write_bytes(marked)
    long = json.dumps(record("core", core_metrics(), sae_lens_id="long")).replace("81.2", "9" * 400)
    put(published, "core", long, "m_eval_results.json")
    put(published, "core", record("core", core_metrics("81.2"), sae_lens_id="text"), "n_eval_results.json")
    strange = {"d_sae": "4096", "architecture": 7, "metadata": [1]}
    put(published, "core", record("core", core_metrics(), sae_cfg_dict=strange), "o_eval_results.json")
    imported = import_saebench(published)
    (row,) = dictionary_rows([read_saebench(folder / "o_eval_results.json")[0]])
    assert (row["width"], row["architecture"]) == (16384, "batch_topk"), "from its name"
    l0 = {r.sae_lens_id: r.metric("sparsity", "l0") for r in imported.results if r.eval_type_id == "core"}
    assert [l0[f"{RELEASE}/{name}"] for name in ("marked", "long", "text")] == [7.0, None, None]
    for name, says in zip("ghijkn", ("directory", "not exist", *["not valid JSON"] * 3, "sparsity.l0"), strict=True):
        (problem,) = (p for p in imported.problems if f"{name}_eval_results.json" in p)
        assert says in problem


def test_bare_nan_is_read_as_nothing(tmp_path):
    text = json.dumps(record("core", core_metrics())).replace("0.981", "NaN").replace("0.76", "Infinity")
    result, _ = read_saebench(put(tmp_path, "core", text))
    assert result.metric("model_performance_preservation", "ce_loss_score") is None
    assert result.metric("reconstruction_quality", "explained_variance") is None


def test_of_two_measurements_the_later_counts(published):
    put(published, "core_again", record("core", core_metrics(99.0), datetime_epoch_millis=1737046329000))
    imported = import_saebench(published)
    assert imported.results[0].metric("sparsity", "l0") == 99.0
    assert "the later counts" in imported.problems[0]


def test_nothing_to_read_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        import_saebench(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no file that ends in"):
        import_saebench(tmp_path)
    put(tmp_path, "core", "{", "x_eval_results.json")
    with pytest.raises(InputError, match="None of the 1 files"):
        import_saebench(tmp_path)


def test_headlines_are_known_by_their_column():
    assert headline("absorption").better == -1
    assert len({h.column for h in HEADLINES}) == len(HEADLINES)
    with pytest.raises(InputError, match="Did you mean 'absorption'"):
        headline("absorbtion")
