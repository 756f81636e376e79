"""``saeworks world``: what each command prints, writes and refuses."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from saeworks.activations.texts import open_texts
from saeworks.cli.app import main
from saeworks.cli.markup import marked
from saeworks.jobs.conversation import open_conversation
from saeworks.jobs.world_card import shortfall
from saeworks.models.language_model import LanguageModel
from saeworks.world import corpus, model_files
from saeworks.world.concepts import concepts

Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with ``--json``, which must end with ``code``, and return its object."""

    def call(*arguments: object, code: int = 0) -> Any:
        assert main(["world", *map(str, arguments), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` and ``chat``: random models of width 16 with the world's own tokenizer and context."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("shipped")
    tokenizer = AutoTokenizer.from_pretrained(model_files.SHIPPED / "base")
    for seed, name in enumerate(model_files.MODELS):
        torch.manual_seed(seed)
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **shape, **ends)
        LlamaForCausalLM(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture
def shipped(small_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small models in the place of the package's own."""
    monkeypatch.setattr(model_files, "SHIPPED", small_models)
    return small_models


@pytest.fixture
def prompts(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that the model was given; it answers ``answer 1``, ``answer 2`` and so on."""
    seen: list[str] = []

    def generate(self: LanguageModel, given: Sequence[str], *settings: Any) -> list[str]:
        seen.extend(given)
        return [f" answer {len(seen)} "]

    monkeypatch.setattr(LanguageModel, "generate", generate)
    return seen


def type_lines(monkeypatch: pytest.MonkeyPatch, text: str, terminal: bool = False) -> None:
    stream = io.StringIO(text)
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdin", stream)


# --- concepts ---------------------------------------------------------------------------------------------------------


def test_concepts_are_all_there_and_parents_come_first(run: Run) -> None:
    found = run("concepts")
    ids = [one["id"] for one in found["concepts"]]
    assert sorted(ids) == sorted(concepts())
    assert found["count"] == len(ids)
    places = {key: place for place, key in enumerate(ids)}
    assert all(places[one["parent"]] < places[one["id"]] for one in found["concepts"] if one["parent"])


def test_concepts_by_prefix_domain_model_and_depth(run: Run) -> None:
    below = [one["id"] for one in run("concepts", "taxonomy/animal")["concepts"]]
    assert below[0] == "taxonomy/animal"
    assert "taxonomy/animal/mammal/dog" in below
    assert all(key == "taxonomy/animal" or key.startswith("taxonomy/animal/") for key in below)
    found = run("concepts", "taxonomy/animal", "--depth", 2)["concepts"]
    assert {one["id"].count("/") for one in found} == {1, 2}
    hidden = {one["id"]: one["hidden"] for one in found}
    assert hidden["taxonomy/animal/mammal"] == sum(key.startswith("taxonomy/animal/mammal/") for key in below)
    assert len(found) + sum(hidden.values()) == len(below)
    news = run("concepts", "--domain", "news")["concepts"]
    assert {one["domain"] for one in news} == {"news"}
    both = run("concepts", "--known-to", "both")["concepts"]
    assert {one["id"] for one in both} == {key for key, one in concepts().items() if one.known_to == "both"}


def test_concepts_as_a_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world", "concepts", "taxonomy/animal", "--depth", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "taxonomy/animal: the word animal, or a kind of animal [taxonomy, both]"
    assert any(re.fullmatch(r"  mammal: .* \[taxonomy, both\] \(\+\d+ below\)", line) for line in lines)
    assert lines[-1].endswith(" concepts")


# --- sample -----------------------------------------------------------------------------------------------------------


def test_a_sample_is_the_corpus(run: Run) -> None:
    found = run("sample", "facts", "--split", "probe_test", "--start", 7, "--count", 2, "--seed", 3)
    made = [corpus.document("facts", "probe_test", i, seed=3) for i in (7, 8)]
    assert [row["text"] for row in found["documents"]] == [one.text for one in made]
    assert [row["labels"] for row in found["documents"]] == [one.labels for one in made]
    mixed = run("sample", "--count", 3, "--split", "train")["documents"]
    assert [row["text"] for row in mixed] == [corpus.document(None, "train", i).text for i in range(3)]


def test_a_sample_with_a_planted_correlation(run: Run) -> None:
    rows = run("sample", "biographies", "--count", 150, "--spurious", "gender:1")["documents"]
    professions = {
        gender: {r["labels"]["profession"] for r in rows if r["labels"]["gender"] == gender}
        for gender in ("female", "male")
    }
    assert all(professions.values())
    assert professions["female"].isdisjoint(professions["male"])


@pytest.mark.parametrize("domain", ["biographies", "spelling"])
def test_a_written_sample_is_read_back(domain: str, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "new" / "texts.jsonl"
    assert run("sample", domain, "--split", "probe_train", "--count", 30, "--out", out)["out"] == str(out)
    read = list(open_texts([str(out)], split="all").documents())
    made = list(corpus.documents(domain, "probe_train", count=30))
    assert [(d.text, d.labels, d.spans) for d in read] == [(d.text, d.labels, d.spans) for d in made]
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    if domain == "biographies":
        labelled = open_texts([str(out)], split="all", label_column="profession").documents()
        assert [d.labels["label"] for d in labelled] == [d.labels["profession"] for d in made]


def test_samples_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world", "sample", "biographies", "--count", "1"]) == 0
    plain = capsys.readouterr().out
    made = corpus.document("biographies", "validation", 0)
    assert made.text in plain
    assert f"profession {made.labels['profession']}" in plain
    assert main(["world", "sample", "biographies", "--count", "1", "--spans"]) == 0
    inside = capsys.readouterr().out
    assert "· person/name⟧" in inside
    assert re.sub(r" · [^⟦⟧]*⟧|⟦", "", inside) == plain


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], "a red dog ran"),
        ([(0, 13, "all")], "a red dog ran"),
        ([(6, 9, "animal"), (6, 9, "animal/dog"), (6, 9, "word")], "a red ⟦dog · animal/dog, word⟧ ran"),
        ([(2, 9, "thing"), (6, 9, "dog"), (2, 5, "red")], "a ⟦⟦red · red⟧ ⟦dog · dog⟧ · thing⟧ ran"),
        ([(2, 9, "thing"), (6, 13, "act")], "a ⟦red ⟦dog · act⟧ · thing⟧⟦ ran · act⟧"),
        ([(3, 3, "nothing")], "a red dog ran"),
    ],
)
def test_concepts_inside_a_text(spans: list[tuple[int, int, str]], expected: str) -> None:
    assert marked("a red dog ran", spans) == expected


# --- ask --------------------------------------------------------------------------------------------------------------


def test_a_question_on_the_command_line(prompts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world", "ask", "What", "is a dog?", "--system", "Answer shortly."]) == 0
    assert prompts == ["<|system|>Answer shortly.<|end|><|user|>What is a dog?<|end|><|assistant|>"]
    assert capsys.readouterr().out == "answer 1\n"


def test_the_base_model_continues_raw_text(prompts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world", "ask", "--model", "base", "The dog"]) == 0
    assert prompts == ["The dog"]
    assert capsys.readouterr().out == "The dog answer 1 \n"


def test_a_conversation_over_a_pipe_remembers(prompts: list[str], monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    type_lines(monkeypatch, "one\ntwo\n\nnever asked\n")
    found = run("ask")
    first = "<|user|>one<|end|><|assistant|>"
    assert prompts == [first, f"{first}answer 1<|end|><|user|>two<|end|><|assistant|>"]
    assert [(one["text"], one["answer"], one["dropped"]) for one in found["exchanges"]] == [
        ("one", "answer 1", 0),
        ("two", "answer 2", 0),
    ]


def test_the_oldest_exchanges_are_dropped_when_the_context_is_full(prompts: list[str]) -> None:
    talk = open_conversation("chat", system="be kind", tokens=40)
    length = len(talk._model.tokenizer("dog " * 20, add_special_tokens=False)["input_ids"])
    assert 15 <= length <= 45
    kept, dropped = [], 0
    for number in range(8):
        dropped += talk.ask(f"{number} " + "dog " * 20).dropped
        assert len(talk._model.tokenizer(prompts[-1])["input_ids"]) + 40 <= 128
        assert prompts[-1].startswith("<|system|>be kind<|end|>")
        kept = [int(n) for n in re.findall(r"<\|user\|>(\d)", prompts[-1])]
        assert kept == list(range(dropped, number + 1))
    assert dropped > 0
    assert len(kept) > 1
    assert len(talk.exchanges) == 8


def test_forgetting_is_said(
    prompts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch, ("dog " * 20 + "\n") * 5)
    assert main(["world", "ask"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"answer {i}" for i in range(1, 6)]
    assert "oldest exchange is forgotten: the context is full" in printed.err


def test_a_question_that_is_too_long(
    prompts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "dog cat " * 100
    for arguments in ([long], []):
        type_lines(monkeypatch, long + "\nshort\n")
        assert main(["world", "ask", *arguments]) == 2
        assert "the model's context is 128" in capsys.readouterr().err
    # At a terminal one may try again.
    type_lines(monkeypatch, long + "\nshort\n", terminal=True)
    assert main(["world", "ask"]) == 0
    printed = capsys.readouterr()
    assert "the model's context is 128" in printed.err
    assert printed.out == "answer 1\n"
    assert prompts == ["<|user|>short<|end|><|assistant|>"]


def test_answers_come_from_the_model_and_follow_the_seed(shipped: Path, run: Run) -> None:
    from saeworks.models.language_model import load_language_model

    def answer(*flags: object) -> str:
        return run("ask", "Hello", "--tokens", 12, *flags)["exchanges"][0]["answer"]

    expected = load_language_model("world:chat", device="cpu").generate(
        ["<|user|>Hello<|end|><|assistant|>"], 12, stop=["<|end|>"]
    )
    assert answer() == expected[0].strip()
    assert answer("--temperature", 2, "--seed", 5) == answer("--temperature", 2, "--seed", 5)
    assert answer("--temperature", 2, "--seed", 5) != answer("--temperature", 2, "--seed", 6)
    assert answer("--model", "base") != answer()


# --- card -------------------------------------------------------------------------------------------------------------

ROWS = [("recall", "≥ 95%", "97.0%", True), ("loss", "≤ 1.15", "1.100", True), ("jokes", "≥ 0.9", "0.500", False)]


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What measuring says, and what it was asked for; rows of a card are read from the abilities as they are."""
    said: dict[str, Any] = {"rows": ROWS, "asked": []}

    def measure(which: str, directory: Path, device: str, other: dict[str, Any] | None) -> dict[str, Any]:
        said["asked"].append((which, directory, device))
        said["before"] = other
        return {"rows": said["rows"]}

    def ability_rows(which: str, abilities: dict[str, Any]) -> list[tuple[str, ...]]:
        return [tuple(row) for row in abilities["rows"]]

    for name, function in (("abilities", measure), ("card", ability_rows)):
        module = ModuleType(f"saeworks.world.{name}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return said


@pytest.fixture
def built(shipped: Path, tmp_path: Path) -> Path:
    """A model directory with a card, as a build leaves it."""
    directory = tmp_path / "out" / "chat"
    shutil.copytree(shipped / "chat", directory)
    (directory / "README.md").write_text("# A card\n", encoding="utf-8")
    (directory / "recipe.json").write_text('{"replayed": {}}')
    (directory / "abilities.json").write_text(json.dumps({"rows": ROWS, "tolerance": 0.01}))
    return directory


def test_the_card_is_printed(built: Path, capsys: pytest.CaptureFixture[str], run: Run) -> None:
    assert main(["world", "card", str(built)]) == 0
    assert capsys.readouterr().out == "# A card\n"
    found = run("card", built)
    assert (found["model"], found["card"]) == ("chat", "# A card\n")
    assert found["abilities"]["tolerance"] == 0.01


@pytest.mark.parametrize(
    ("recall", "loss", "missed"),
    [
        ("97.0%", "1.100", []),
        ("94.2%", "1.155", []),  # below the figures, within the tolerance
        ("93.9%", "1.100", ["recall"]),
        ("0.0%", "1.170", ["recall", "loss"]),
    ],
)
def test_a_measured_card_is_compared_with_its_figures(
    recall: str, loss: str, missed: list[str], built: Path, measuring: dict[str, Any], run: Run
) -> None:
    reached = (float(recall.rstrip("%")) >= 95, float(loss) <= 1.15)
    measuring["rows"] = [(*ROWS[0][:2], recall, reached[0]), (*ROWS[1][:2], loss, reached[1]), ROWS[2]]
    found = run("card", built, "--measure", "--device", "cpu", code=1 if missed else 0)
    assert found["missed"] == missed
    assert measuring["asked"] == [("chat", built, "cpu")]
    row = found["table"][0]
    assert (row["ability"], row["figure"], row["card"], row["measured"]) == ("recall", "≥ 95%", "97.0%", recall)


def test_the_tolerance_may_be_stated_by_ability_or_not_at_all(
    built: Path, measuring: dict[str, Any], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    measuring["rows"] = [("recall", "≥ 95%", "92.0%", False), ROWS[1], ROWS[2]]
    (built / "abilities.json").write_text(json.dumps({"rows": ROWS, "tolerance": {"recall": 0.05}}))
    assert run("card", built, "--measure", "--device", "cpu")["missed"] == []
    (built / "abilities.json").write_text(json.dumps({"rows": ROWS}))
    assert run("card", built, "--measure", "--device", "cpu", code=1)["missed"] == ["recall"]
    assert main(["world", "card", str(built), "--measure", "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "Missed: recall" in printed
    assert "97.0%" in printed
    (built / "abilities.json").write_text("{}")
    assert "another version wrote it" in run("card", built, "--measure", "--device", "cpu", code=2)["error"]
    # A model that was never measured has no figures to be compared with.
    (built / "abilities.json").unlink()
    assert run("card", built, "--measure", "--device", "cpu")["table"][0]["card"] is None


@pytest.mark.parametrize(
    ("figure", "measured", "expected"),
    [
        ("≥ 95%", "93.1%", 0.019),
        ("≥ 95 %", "97.0%", 0.0),
        ("≤ 1.15", "1.25", 0.1),
        ("≤ 5%", "7.5 %", 0.025),
        ("≥ 0.95", "0.941 (worst class 0.9)", 0.009),
        ("chance", "51%", float("inf")),
    ],
)
def test_how_far_a_figure_is_missed(figure: str, measured: str, expected: float) -> None:
    assert shortfall(figure, measured) == pytest.approx(expected)


# --- build ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments that building was called with, and the number of threads then."""
    import torch

    asked: list[tuple[Any, ...]] = []

    def build(out: Path, base: Any, chat: Any, device: Any, parts: Sequence[str], measure: bool) -> dict[str, Path]:
        asked.append((out, base, chat, str(device), list(parts), measure, torch.get_num_threads()))
        return {part: out / part for part in parts}

    module = ModuleType("saeworks.world.build")
    module.__dict__["build"] = build
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_build_passes_its_flags_on(builds: list[tuple[Any, ...]], tmp_path: Path, run: Run) -> None:
    import torch

    from saeworks.world.chat_tuning import ChatTuningConfig
    from saeworks.world.pretraining import PretrainingConfig

    made = run("build", "--out", tmp_path / "w", "--device", "cpu")
    assert made["models"] == {"base": str(tmp_path / "w" / "base"), "chat": str(tmp_path / "w" / "chat")}
    steps = ["--steps=5", "--more-steps=0", "--chat-steps=3", "--judging-steps=1", "--settling-steps=2"]
    steps += ["--seed=2", "--threads=3"]
    run("build", "--out", tmp_path / "w", "--part", "chat", "--no-measure", "--device", "cpu", *steps)
    assert builds[0][1:6] == (PretrainingConfig(), ChatTuningConfig(), "cpu", ["base", "chat"], True)
    recipes = (
        PretrainingConfig(steps=5, more_steps=0, seed=2),
        ChatTuningConfig(steps=3, judging_steps=1, settling_steps=2, seed=2),
    )
    assert builds[1] == (tmp_path / "w", *recipes, "cpu", ["chat"], False, 3)
    assert torch.get_num_threads() == builds[0][6]


def test_an_interrupted_build_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saeworks.jobs.world.build", interrupted)
    assert main(["world", "build", "--out", "my world"]) == 130
    assert "Continue with: saeworks world build --out 'my world'" in capsys.readouterr().err


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["concpts"], "concepts"),
        (["concepts", "dog"], "Did you mean 'taxonomy/animal/mammal/dog'?"),
        (["concepts", "taxonomy/anmal"], "Did you mean 'taxonomy/animal'?"),
        (["concepts", "--domain", "nwes"], "Did you mean 'news'?"),
        (["concepts", "--known-to", "chta"], "Did you mean 'chat'?"),
        (["concepts", "--depth", "0"], "--depth is 0"),
        (["sample", "biografies"], "Did you mean 'biographies'?"),
        (["sample", "news", "--split", "tran"], "Did you mean 'train'?"),
        (["sample", "news", "--count", "0"], "--count is 0"),
        (["sample", "news", "--start", "-1"], "--start is -1"),
        (["sample", "biographies", "--spurious", "gender"], "LABEL:STRENGTH"),
        (["sample", "news", "--spurious", "gender:1"], "gender in biographies"),
        (["sample", "news", "--out", "{tmp}/a.csv"], "must end in .jsonl"),
        (["ask", "hello", "--model", "cat"], "Did you mean 'chat'?"),
        (["ask", "hello", "--tokens", "0"], "--tokens is 0"),
        (["ask", "hello", "--tokens", "128"], "must hold the question"),
        (["ask", "hello", "--temperature", "-1"], "--temperature is -1"),
        (["ask", " "], "the text is empty"),
        (["ask", "hello", "--model", "base", "--system", "x"], "means nothing"),
        (["card", "cht"], "Did you mean 'chat'?"),
        (["card", "{tmp}"], "holds no model"),
        (["card", "base"], "no card README.md"),
        (["card", "base", "--measure", "--device", "tpu"], "Unknown device 'tpu'"),
        (["build"], "--out"),
        (["build", "--out", "{tmp}/new", "--part", "chatt"], "Did you mean 'chat'?"),
        (["build", "--out", "{tmp}/new", "--steps", "0"], "--steps is 0"),
        (["build", "--out", "{tmp}/file"], "is a file"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str], says: str, shipped: Path, measuring: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["world", *(part.replace("{tmp}", str(tmp_path)) for part in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert measuring["asked"] == []
