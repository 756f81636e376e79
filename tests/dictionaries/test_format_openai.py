"""OpenAI's format: files as its own library writes them, read by the formula of that library; and back."""

import pytest
import torch
from format_cases import D, K, N, assert_same, dictionary, difference, tokens

import saeworks
from saeworks.dictionaries.formats.registry import write
from saeworks.errors import InputError


def state(activation="TopK", seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        "pre_bias": torch.randn(D, generator=g),
        "latent_bias": torch.randn(N, generator=g),
        "stats_last_nonzero": torch.zeros(N, dtype=torch.long),
        "latents_activation_frequency": torch.ones(N),
        "latents_mean_square": torch.zeros(N),
        "encoder.weight": torch.randn(N, D, generator=g),
        "decoder.weight": torch.randn(D, N, generator=g),
        "activation": activation,
        "activation_state_dict": {"k": K, "postact_fn": "ReLU"} if activation == "TopK" else {},
    }


def by_hand(s, x):
    mean = x.mean(1, keepdim=True)
    std = x.std(1, keepdim=True)
    lined = s["activation"] == "TopK"
    y = (x - mean) / (std + 1e-5) if lined else x
    z = (y - s["pre_bias"]) @ s["encoder.weight"].T + s["latent_bias"]
    f = torch.zeros_like(z).scatter(1, *reversed(z.topk(K, 1))).relu() if lined else z.relu()
    out = f @ s["decoder.weight"].T + s["pre_bias"]
    return f, out * std + mean if lined else out


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_a_published_file_does_what_its_library_does(tmp_path, activation):
    s = state(activation)
    (tmp_path / "gpt2-small/resid_post_mlp_v5_32k/autoencoders").mkdir(parents=True)
    path = tmp_path / "gpt2-small/resid_post_mlp_v5_32k/autoencoders/8.pt"
    torch.save(s, path)
    found, x = saeworks.load(path), tokens()
    f, out = by_hand(s, x)
    assert difference(f, found.encode(x)) < 1e-5
    # The deviation is multiplied back without the 1e-5 that was added before dividing: a hundred thousandth apart.
    assert difference(out, found(x)) < 1e-4
    assert found.cfg.metadata["format"] == "openai"
    assert found.cfg.metadata["site"] == "layers.8.resid_post"
    assert found.cfg.metadata["model_name"] == "openai-community/gpt2"


def test_a_tied_decoder_is_the_encoder(tmp_path):
    s = state("ReLU")
    weight = s.pop("decoder.weight")
    torch.save({**s, "decoder.linear.weight": s["encoder.weight"]}, tmp_path / "1.pt")
    assert weight.shape == (D, N)
    assert torch.equal(saeworks.load(tmp_path / "1.pt").W_dec, s["encoder.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "Identity"}, "has the activation 'Identity'"),
        ({"activation_state_dict": {"k": K, "postact_fn": "Identity"}}, "may be negative"),
        ({"activation_state_dict": {}}, "how many latents"),
        ({"latent_bias": torch.zeros(N + 1)}, r"has the shape \[17\]"),
        ({"decoder.weight": torch.zeros(N, D)}, "W_dec has the shape"),
    ],
)
def test_what_a_file_lacks_or_contradicts_is_a_sentence(tmp_path, change, words):
    torch.save({**state(), **change}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=words):
        saeworks.load(tmp_path / "a.pt")


@pytest.mark.parametrize("settings", [{"architecture": "relu"}, {"architecture": "topk", "input_op": "layer_norm"}])
@pytest.mark.parametrize("pre_bias", [True, False])
def test_a_dictionary_comes_back_as_it_went(tmp_path, settings, pre_bias):
    d = dictionary(**settings, pre_bias=pre_bias)
    write(d, tmp_path / "out", "openai")
    again = saeworks.load(tmp_path / "out")
    assert_same(d, again)
    assert again.cfg.metadata["site"] == d.cfg.metadata["site"]
    written = torch.load(tmp_path / "out" / "autoencoder.pt", weights_only=True)
    assert set(written) == set(state())
    assert difference(by_hand(written, tokens())[0], d.encode(tokens())) < 1e-5


@pytest.mark.parametrize("settings", [{"architecture": "topk"}, {"architecture": "jumprelu"}, {"d_out": 3}])
def test_what_the_format_cannot_say_is_refused(tmp_path, settings):
    with pytest.raises(InputError, match="cannot be written as openai"):
        write(dictionary(**settings), tmp_path / "out", "openai")
    assert not (tmp_path / "out").exists()
