"""The object for SAEBench's evals: what they read is there, and it computes what the dictionary computes."""

from __future__ import annotations

import json

import pytest
import torch
from format_cases import D, K, N, dictionary, difference, tokens

from saeworks.dictionaries.formats.saebench import for_saebench
from saeworks.errors import InputError

FIELDS = [
    "model_name",
    "d_in",
    "d_sae",
    "hook_layer",
    "hook_name",
    "context_size",
    "hook_head_index",
    "architecture",
    "apply_b_dec_to_input",
    "finetuning_scaling_factor",
    "activation_fn_str",
    "activation_fn_kwargs",
    "prepend_bos",
    "normalize_activations",
    "dtype",
    "device",
    "model_from_pretrained_kwargs",
    "dataset_path",
    "dataset_trust_remote_code",
    "seqpos_slice",
    "training_tokens",
    "sae_lens_training_version",
    "neuronpedia_id",
]


@pytest.mark.parametrize(
    "kind",
    [
        {"architecture": "relu"},
        {"architecture": "jumprelu", "pre_bias": False},
        {"architecture": "topk", "norm_weighted": True},
    ],
    ids=str,
)
def test_it_computes_what_the_dictionary_computes_with_rows_of_norm_1(kind) -> None:
    d, x = dictionary(**kind), tokens()
    sae = for_saebench(d)
    norms = d.W_dec.norm(dim=1)
    assert difference(d(x), sae(x)) < 1e-5
    assert difference(d.encode(x) * norms, sae.encode(x)) < 1e-5
    assert difference(sae.decode(sae.encode(x)), sae(x)) < 1e-6
    assert sae.encode(x.view(4, 30, D)).shape == (4, 30, N)
    assert torch.equal(sae(x.view(4, 30, D)).view(-1, D), sae(x))
    assert sae.check_decoder_norms()
    assert [tuple(t.shape) for t in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec)] == [(D, N), (N, D), (N,), (D,)]


def test_the_fields_its_evals_read_are_there() -> None:
    sae = for_saebench(dictionary("topk", norm_weighted=True))
    cfg = sae.cfg
    assert set(FIELDS) == set(cfg.to_dict())
    json.dumps(cfg.to_dict())
    assert (cfg.model_name, cfg.hook_name, cfg.hook_layer) == ("pythia-70m", "blocks.3.hook_resid_post", 3)
    assert (cfg.architecture, cfg.activation_fn_kwargs, cfg.d_in, cfg.d_sae) == ("topk", {"k": K}, D, N)
    cfg.exclude_special_tokens = True  # its evals add what they need
    assert set(FIELDS) == set(cfg.to_dict())


def test_moving_changes_type_and_settings_together() -> None:
    sae = for_saebench(dictionary("relu"))
    assert sae.to(device="cpu", dtype=torch.bfloat16) is sae
    assert (sae.dtype, sae.cfg.dtype, str(sae.device), sae.cfg.device) == (torch.bfloat16, "bfloat16", "cpu", "cpu")
    assert sae.check_decoder_norms()
    assert sae.encode(tokens(dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_rows_of_another_norm_are_noticed() -> None:
    sae = for_saebench(dictionary("relu"))
    sae.dictionary = dictionary("relu")
    assert not sae.check_decoder_norms()


def test_the_names_of_the_caller_win() -> None:
    sae = for_saebench(dictionary("relu", metadata={}), "gemma-2-2b", "blocks.12.hook_resid_post", context_size=64)
    assert (sae.cfg.model_name, sae.cfg.hook_layer, sae.cfg.context_size) == ("gemma-2-2b", 12, 64)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"architecture": "relu", "d_out": D}, "transcoder"),
        ({"architecture": "relu", "sources": ("a", "b")}, "crosscoder"),
        ({"architecture": "relu", "input_op": "layer_norm"}, "layer_norm"),
        ({"architecture": "topk"}, "ranking"),
        ({"architecture": "relu", "metadata": {"site": "layers.1.resid_post"}}, "model_name"),
        ({"architecture": "relu", "metadata": {"model_name": "gpt2"}}, "hook_name"),
    ],
)
def test_what_its_evals_could_not_measure_is_refused(kind, words: str) -> None:
    with pytest.raises(InputError, match=words):
        for_saebench(dictionary(**kind))


def test_rows_of_zero_are_refused_as_there() -> None:
    d = dictionary("relu")
    with pytest.raises(InputError, match="1 are; leave these latents out"):
        for_saebench(d.replace(W_dec=torch.where(torch.arange(N)[:, None] == 2, torch.zeros(()), d.W_dec)))
