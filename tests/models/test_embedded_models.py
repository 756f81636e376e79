"""The names of the embedded models, chat prompts, and tokens that end a continuation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from saeworks.errors import InputError, RunError
from saeworks.models.language_model import LanguageModel, load_language_model
from saeworks.world import model_files

Tiny = Callable[..., LanguageModel]


@pytest.fixture
def shipped(checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tiny models where the package keeps its own."""
    shutil.copytree(checkpoint("llama"), tmp_path / "base")
    shutil.copytree(checkpoint("qwen2"), tmp_path / "chat")
    monkeypatch.setattr(model_files, "SHIPPED", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "kind"), [("world", "llama"), ("world:base", "llama"), ("world:chat", "qwen2")])
def test_the_names_of_the_embedded_models(name: str, kind: str, shipped: Path, tiny: Tiny) -> None:
    model = load_language_model(name, device="cpu")
    assert model.name == name
    assert model.fingerprint() == tiny(kind).fingerprint()


def test_an_unknown_embedded_model_is_a_sentence(shipped: Path) -> None:
    with pytest.raises(InputError, match=r"no embedded model 'world:cat'\. Did you mean 'world:chat'"):
        load_language_model("world:cat", device="cpu")
    with pytest.raises(InputError, match="Did you mean 'chat'"):
        model_files.model_path("cht")


def test_a_missing_embedded_model_says_how_to_make_it(shipped: Path) -> None:
    shutil.rmtree(shipped / "chat")
    with pytest.raises(RunError, match="saeworks world build"):
        load_language_model("world:chat", device="cpu")


def test_the_embedded_models_share_the_default_site(shipped: Path) -> None:
    from saeworks.jobs.inputs import WORLD_SITE, choose_site

    for name in model_files.NAMES:
        assert choose_site(load_language_model(name, device="cpu"), None) == WORLD_SITE
    other = load_language_model(shipped / "base", device="cpu")
    assert choose_site(other, None) == "layers.1.resid_post"


def test_a_stop_ends_the_continuation_and_is_no_part_of_it(tiny: Tiny) -> None:
    model = tiny("llama")
    prompts = ["the dog saw", "a red bird sings about the"]
    plain = [text.split() for text in model.generate(prompts, max_new_tokens=12)]
    assert len({word for words in plain for word in words}) > 1
    for word in dict.fromkeys(plain[0] + plain[1]):
        expected = [" ".join(words[: words.index(word)] if word in words else words) for words in plain]
        assert model.generate(prompts, max_new_tokens=12, stop=[word]) == expected


def test_a_stop_adds_to_the_end_token(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    plain = model.generate(["the dog saw"], max_new_tokens=12)[0].split()
    late = next(word for word in reversed(plain) if plain.index(word) > 0)
    for own in (model.tokenizer.convert_tokens_to_ids(late), [2, model.tokenizer.convert_tokens_to_ids(late)]):
        monkeypatch.setattr(model.module.generation_config, "eos_token_id", own)
        ended = model.generate(["the dog saw"], max_new_tokens=12, stop=["<unk>"])[0].split()
        assert ended == plain[: plain.index(late) + 1]


def test_a_stop_must_be_one_token(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="'the dog' is 2 tokens"):
        tiny("llama").generate(["the"], 2, stop=["the dog"])


def test_a_chat_prompt_follows_the_template_without_a_second_bos(checkpoint: Callable[..., Path]) -> None:
    model = load_language_model(checkpoint("llama"), device="cpu")
    with pytest.raises(InputError, match="no chat template"):
        model.chat_prompt([{"role": "user", "content": "hello"}])
    model.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }} says {{ m['content'] }} ; {% endfor %}"
        "{% if add_generation_prompt %}assistant says{% endif %}"
    )
    messages = [{"role": "user", "content": "the dog"}, {"role": "assistant", "content": "sings"}]
    prompt = model.chat_prompt([*messages, {"role": "user", "content": "songs"}])
    assert prompt == "user says the dog ; assistant says sings ; user says songs ; assistant says"
    ids = model.tokenize([prompt], 64).token_ids[0].tolist()
    assert ids.count(model.tokenizer.bos_token_id) == 1
