"""Published crosscoders of two models against their formulas, and rescaling that keeps what norms say."""

import json

import pytest
import torch
from format_cases import D, K, N, difference, tokens
from safetensors.torch import save_file

import saeworks
from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.dictionaries.folding import rescale_latents
from saeworks.errors import InputError


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STATE = {
    "encoder.weight": draw(2, D, N, seed=1),
    "encoder.bias": draw(N, seed=3),
    "decoder.weight": draw(2, N, D, seed=2),
    "decoder.bias": draw(2, D, seed=4),
}


def hub(path, prefix="", **more):
    path.mkdir()
    save_file({prefix + name: tensor for name, tensor in {**STATE, **more}.items()}, path / "model.safetensors")
    settings = {"activation_dim": D, "dict_size": N, "num_layers": 2}
    (path / "config.json").write_text(json.dumps(settings))
    return path


def latents(x):
    return (torch.einsum("tsd,sdn->tn", x.view(-1, 2, D), STATE["encoder.weight"]) + STATE["encoder.bias"]).relu()


def written(f):
    return (torch.einsum("tn,snd->tsd", f, STATE["decoder.weight"]) + STATE["decoder.bias"]).flatten(1)


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_crosscoder_of_the_hub_has_a_base_and_a_chat_model(tmp_path, prefix):
    found, x = saeworks.load(hub(tmp_path / "t", prefix)), tokens(2 * D)
    assert found.cfg.metadata["format"] == "dictionary_learning_hub"
    assert found.cfg.sources == ("base", "chat")
    assert difference(latents(x), found.encode(x)) < 1e-5
    assert difference(written(latents(x)), found(x)) < 1e-5
    W_enc, W_dec, b_dec = found.source("chat")
    assert torch.equal(W_enc, STATE["encoder.weight"][1])
    assert torch.equal(W_dec, STATE["decoder.weight"][1])
    assert torch.equal(b_dec, STATE["decoder.bias"][1])


def test_with_a_threshold_a_latent_is_active_by_the_sum_of_its_norms(tmp_path):
    more = {"k": torch.tensor(K), "threshold": torch.tensor(2.5)}
    found, x = saeworks.load(hub(tmp_path / "t", **more)), tokens(2 * D)
    f = latents(x)
    f = f * (f * STATE["decoder.weight"].norm(dim=2).sum(0) > 2.5)
    assert 0 < (f > 0).float().mean() < (latents(x) > 0).float().mean()
    assert difference(written(f), found(x)) < 1e-5
    (path := tmp_path / "never").mkdir()
    save_file({**STATE, "k": torch.tensor(K), "threshold": torch.tensor(-1.0)}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"activation_dim": D, "dict_size": N}))
    with pytest.raises(InputError, match="no calibrated threshold"):
        saeworks.load(path)


def test_decoupled_codes_of_the_hub_are_latents_of_one_model_each(tmp_path):
    more = {"k": torch.tensor(K), "threshold": torch.tensor([2.0, 4.0]), "code_normalization_id": torch.tensor(5)}
    found, x = saeworks.load(hub(tmp_path / "t", **more)), tokens(2 * D)
    norms = STATE["decoder.weight"].norm(dim=2)
    f = torch.stack([latents(x) * (latents(x) * norms[m] > limit) for m, limit in enumerate((2.0, 4.0))], dim=1)
    out = torch.einsum("tsn,snd->tsd", f, STATE["decoder.weight"]) + STATE["decoder.bias"]
    assert found.cfg.sources == ("base", "chat")
    assert difference(f.flatten(1), found.encode(x)) < 1e-5
    assert difference(out.flatten(1), found(x)) < 1e-5


def pair(path, **changes):
    path.mkdir()
    state = {
        "W_enc": STATE["encoder.weight"],
        "W_dec": STATE["decoder.weight"].transpose(0, 1).contiguous(),
        "b_enc": STATE["encoder.bias"],
        "b_dec": STATE["decoder.bias"],
    }
    torch.save({**state, **changes}, path / "cc_weights.pt")
    settings = {"d_in": D, "dict_size": N, "hook_point": "blocks.14.hook_resid_pre", "seed": 49}
    (path / "cfg.json").write_text(json.dumps(settings))
    return path


def test_decoders_that_are_stored_latent_first_are_turned(tmp_path):
    found, x = saeworks.load(pair(tmp_path / "t")), tokens(2 * D)
    assert found.cfg.metadata["format"] == "crosscoder_pair"
    assert found.cfg.metadata["site"] == "layers.14.resid_pre"
    assert found.cfg.metadata["normalization"]["folded"] is False
    assert difference(written(latents(x)), found(x)) < 1e-5


def test_scales_of_the_models_are_folded_when_they_are_given(tmp_path):
    scales = [0.25, 0.5]
    found = saeworks.load(pair(tmp_path / "t"), hints={"norm_scaling_factor": scales})
    x, factor = tokens(2 * D), torch.tensor(scales).repeat_interleave(D)
    assert difference(written(latents(x * factor)) / factor, found(x)) < 1e-5
    with pytest.raises(InputError, match="2 numbers as norm_scaling_factor"):
        saeworks.load(tmp_path / "t", hints={"norm_scaling_factor": 0.3})


def test_a_decoder_of_another_order_is_refused(tmp_path):
    with pytest.raises(InputError, match="W_dec"):
        saeworks.load(pair(tmp_path / "t", W_dec=STATE["decoder.weight"]))


def crosscoder(architecture="jumprelu", **changes):
    cfg = DictionaryConfig(
        architecture=architecture, d_in=2 * D, d_sae=N, apply_b_dec_to_input=False, sources=("base", "chat"), **changes
    )
    threshold = draw(N, seed=5).abs() if architecture == "jumprelu" else None
    weights = draw(2 * D, N, seed=1), draw(N, 2 * D, seed=2), draw(N, seed=3), draw(2 * D, seed=4)
    return Dictionary(cfg, *weights, threshold)


def test_rescaled_latents_say_the_same_of_the_sources():
    d, factors, x = crosscoder(), draw(N, seed=6).exp(), tokens(2 * D)
    again = rescale_latents(d, factors)
    assert difference(d(x), again(x)) < 1e-5
    assert difference(d.encode(x) * factors, again.encode(x)) < 1e-5
    ratio, other = (norms[1] / norms[0] for norms in (d.decoder_norms(), again.decoder_norms()))
    assert torch.allclose(ratio, other, rtol=1e-5)
    scores, others = (one.encode(x) * one.decoder_norms().sum(dim=0) for one in (d, again))
    assert torch.allclose(scores, others, rtol=1e-4, atol=1e-5)


def test_rescaling_refuses_what_would_change_the_function():
    with pytest.raises(InputError, match="positive factor for each of the"):
        rescale_latents(crosscoder(), torch.zeros(N))
    with pytest.raises(InputError, match="which of them win"):
        rescale_latents(crosscoder("topk", k=K), torch.ones(N))
    d, x, factors = crosscoder("topk", k=K, norm_weighted=True), tokens(2 * D), draw(N, seed=6).exp()
    assert difference(d(x), rescale_latents(d, factors)(x)) < 1e-5
