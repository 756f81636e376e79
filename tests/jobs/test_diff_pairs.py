"""What ``saeworks diff BASE CHAT`` refuses, what it leaves out and says so, and what it holds while it works."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saeworks.cli.app import main
from saeworks.jobs import diff_stages

WORDS = ["dog", "cat", "runs", "sleeps", "red", "green", "house", "river", "often", "and"]
TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{{ 'often' if m['role'] == 'user' else 'and' }} {{ m['content'] }} </s> "
    "{% endfor %}{% if add_generation_prompt %}and{% endif %}"
)
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
Turns = list[dict[str, str]]
Command = Callable[..., tuple[int, str]]


def save_model(
    directory: Path,
    seed: int,
    *,
    words: list[str] = WORDS,
    width: int = 16,
    template: str | None = TEMPLATE,
    by_space: bool = False,
    broken: bool = False,
    silent: bool = False,
) -> str:
    """A random two-layer model; ``silent`` ends every answer before its first word, ``broken`` has a NaN weight."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if by_space else pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    module = LlamaForCausalLM(config)
    with torch.no_grad():
        if broken:
            module.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
        if silent:  # the embedding of the last token of every prompt decides
            module.model.embed_tokens.weight[vocabulary["and"]] = 100 * torch.ones(width)
            module.lm_head.weight[2] = 100 * torch.ones(width)
    module.save_pretrained(directory)
    return str(directory)


def talks_file(path: Path, made: Callable[[int], Turns], count: int = 300) -> str:
    path.write_text("".join(json.dumps({"messages": made(i)}) + "\n" for i in range(count)), encoding="utf-8")
    return str(path)


def said(draw: random.Random, count: int = 4) -> str:
    return " ".join(draw.choices(WORDS[:8], k=count))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, texts and transcripts."""
    root, draw = tmp_path_factory.mktemp("pairs"), random.Random(0)
    save_model(root / "base", 0, template=None)
    (root / "texts.txt").write_text("\n".join(said(draw, 12) for _ in range(400)) + "\n", encoding="utf-8")
    talks_file(root / "talks.jsonl", lambda _: exchange(draw))
    return root


def exchange(draw: random.Random) -> Turns:
    return [{"role": "user", "content": said(draw)}, {"role": "assistant", "content": said(draw)}]


@pytest.fixture
def command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command with a chat model; gives the exit code and what was printed as JSON."""

    def run(chat: str, *more: str, talks: str = "", base: str | None = None) -> tuple[int, str]:
        flags: dict[str, object] = {
            "data": root / "texts.txt", "transcripts": talks or root / "talks.jsonl", "site": "layers.0.resid_post",
            "out": tmp_path / "out", "width": 16, "k": 2, "tokens": 512, "batch-size": 64, "buffer-tokens": 256,
            "measure-tokens": 300, "conversations": 6, "answer-tokens": 4, "context-length": 32,
            "harvest-batch-size": 8, "gate": 0.5, "device": "cpu",
        }  # fmt: skip
        left_out = {"width", "k"} if "--dictionary" in more else {part.removeprefix("--") for part in more}
        line = ["diff", base or str(root / "base"), chat, "--json", *more]
        line += [part for key, value in flags.items() if key not in left_out for part in (f"--{key}", str(value))]
        code = main(line)
        return code, capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"words": WORDS[::-1]}, r"tokenizers differ: 'and' is token 13 of the base .* and 4 of the chat model"),
        ({"words": WORDS[:-1]}, r"the base .* has 1 tokens that the chat model .* lacks, such as 'and'"),
        ({"words": [*WORDS, "tool"]}, r"vocabularies differ: the base .* has 14 embeddings, .* such as 'tool' \(14\)"),
        ({"by_space": True}, "have one vocabulary and cut text differently"),
        ({"template": None}, "no chat template"),
        ({"template": "{% for m in messages %}{{ m"}, "None of the first 100 transcripts .* can be rendered"),
        ({"template": "{% for m in messages %}{{ m['role'] }}{% endfor %}"}, "does not repeat the message"),
        ({"width": 24}, "the base model has width 16 and the chat model 24; saeworks diff compares models of one"),
        ({"broken": True}, "of the chat model at 'layers.0.resid_post' are not finite"),
    ],
)
def test_models_that_cannot_be_compared(command: Command, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    import re

    code, printed = command(save_model(tmp_path / "chat", 1, **changes))
    assert code == 2
    assert re.search(words, json.loads(printed)["error"])
    assert not (tmp_path / "out").exists()  # so that the command can be repeated once the input is mended


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"messages": [{"role": "user", "content": "dog"}]}\nnot json\n', "line 2 is no JSON"),
        (b'{"messages": [{"role": "user", "content": "caf\xe9"}]}\n', "line 1 is not UTF-8"),
        ('{"messages": []}\n'.encode("utf-16"), "line 1 is not UTF-8"),
        (b"[1]\n", "line 1 is a list; give one JSON object a line"),
        (b'{"turns": []}\n', "line 1 has no 'messages', only turns"),
        (b"{}\n", "line 1 has no 'messages', only nothing"),
        (b'{"messages": []}\n', "a list of messages"),
        (b'{"messages": [{"role": "user", "content": null}]}\n', "a list of messages"),
    ],
)
def test_files_that_hold_no_transcripts(command: Command, tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "talks.jsonl").write_bytes(raw)
    chat = save_model(tmp_path / "chat", 1)
    code, printed = command(chat, talks=str(tmp_path / "talks.jsonl"))
    assert code == 2
    assert words in json.loads(printed)["error"]
    assert not (tmp_path / "out").exists()


def test_answers_longer_than_the_context_are_refused(command: Command, tmp_path: Path) -> None:
    code, printed = command(save_model(tmp_path / "chat", 1), "--answer-tokens", "64")
    assert code == 2
    assert "leaves no room for a request in the chat model's context of 64" in json.loads(printed)["error"]


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (("base", "chat", "third"), "over widths [16, 16, 16]"),
        (("chat", "base"), "in this order"),
        (None, "is no crosscoder"),
    ],
)
def test_crosscoders_over_other_models(
    command: Command, tmp_path: Path, sources: tuple[str, ...] | None, words: str
) -> None:
    import torch

    from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig

    d = 16 * len(sources or ("one", "two"))
    weights = torch.randn(d, 8)
    cfg = DictionaryConfig(architecture="topk", d_in=d, d_sae=8, k=2, apply_b_dec_to_input=False, sources=sources)
    Dictionary(cfg, weights, weights.T.clone(), torch.zeros(8), torch.zeros(d)).save(tmp_path / "own")
    code, printed = command(save_model(tmp_path / "chat", 1), "--dictionary", str(tmp_path / "own"))
    assert code == 2
    assert words in json.loads(printed)["error"]


def test_a_template_that_refuses_some_leaves_them_out_and_says_so(command: Command, tmp_path: Path) -> None:
    draw = random.Random(1)

    def talk(number: int) -> Turns:
        before = [{"role": "system", "content": said(draw)}] if number % 2 else []
        return [*before, *exchange(draw)]

    chat = save_model(tmp_path / "chat", 1, template=STRICT)
    code, printed = command(chat, talks=talks_file(tmp_path / "talks.jsonl", talk))
    assert code == 0
    summary = json.loads(printed)
    assert "Of the first 100 transcripts 50 cannot be rendered" in summary["notes"][0]
    assert "no system role" in summary["notes"][0]
    assert summary["kl"]


def test_without_a_single_answer_there_is_a_report_all_the_same(command: Command, tmp_path: Path) -> None:
    code, printed = command(save_model(tmp_path / "chat", 1, silent=True))
    assert code == 0
    summary = json.loads(printed)
    assert summary["kl"] == []
    assert "Nothing was patched. The chat model's answers to the held-out requests are empty" in summary["notes"][0]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Nothing was patched." in page
    assert 'id="patching"' not in page
    assert summary["counts"]["latents"] == 16


def test_hostile_messages_are_compared(command: Command, tmp_path: Path) -> None:
    """Markup, template code, right-to-left text, NUL, half a character, nothing at all, a byte-order mark."""
    draw = random.Random(2)
    hostile = ["</script><img src=x onerror=alert(1)>", "{{ messages }} {% x %}", "שלום \u202e", "a\x00b", "\ud83d", ""]

    def talk(number: int) -> Turns:
        turns = exchange(draw)
        turns[0]["content"] = f"{hostile[number % 6]} {said(draw, 2)}" if number % 6 < 5 else ""
        return turns

    file = Path(talks_file(tmp_path / "talks.jsonl", talk))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    code, printed = command(save_model(tmp_path / "chat", 1), talks=str(file))
    assert code == 0
    summary = json.loads(printed)
    assert summary["notes"] == []  # not one was left out
    assert summary["counts"]["tokens"] > 200
    assert all(row["tokens"] > 0 for row in summary["kl"] if row["group"] == "all")


@pytest.mark.parametrize(("same", "held"), [(False, 2), (True, 1)])
def test_no_model_is_held_twice(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool, held: int
) -> None:
    """While latents are measured, answers patched and latents read, no second copy of either model is alive."""
    import gc

    from transformers import LlamaForCausalLM

    def alive() -> int:
        gc.collect()
        return sum(type(one) is LlamaForCausalLM for one in gc.get_objects())

    found: list[int] = []

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: (found.append(alive()), real(*given))[1]

    chat = save_model(tmp_path / "chat", 1)
    for stage in ("measure", "patching", "reading"):
        monkeypatch.setattr(diff_stages, stage, counted(getattr(diff_stages, stage)))
    before = alive()
    code, _ = command(chat, base=chat if same else None)
    assert code == 0
    assert [count - before for count in found] == [held] * 3
