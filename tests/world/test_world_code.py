"""Code: what its labels and spans say, what the comments promise, and what the probe splits hold out."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from functools import cache

from saeworks.world import corpus
from saeworks.world.documents import Document
from saeworks.world.domains import code
from saeworks.world.domains.code_printing import LANGUAGES
from saeworks.world.drawing import Draw
from saeworks.world.phrasing import SPLITS

# A comment has a line of its own; in Python two strokes are a division.
COMMENT = re.compile(r"^(# |// |/\* ).*$", re.MULTILINE)
STRING = re.compile(r"\"[^\"]*\"|'[^']*'")


@cache
def sample(split: str, count: int = 600) -> tuple[Document, ...]:
    return tuple(code.write(Draw(0, "code", split, i), split, f"code/{split}/0/{i}") for i in range(count))


def pieces(made: Document, concept: str) -> list[str]:
    return [made.text[s.start : s.end] for s in made.spans if s.concept == concept]


# Signs of a language that no other has; written down here once more.
SIGNS = {
    "python": r"^(?!.*[;{]$)",
    "javascript": r"console\.log|\bconst\b|\bfunction\b|===|\(let ",
    "c": r"\bprintf\(|\b(int|bool|void) \w|char \*",
    "rust": r"println!|\bfn \w|\blet mut\b",
}


def test_the_label_is_the_language() -> None:
    for made in (one for split in SPLITS for one in sample(split)):
        bare = COMMENT.sub("", made.text)
        found = [name for name, signs in SIGNS.items() if name != "python" and re.search(signs, bare)]
        found = found or ["python"] * (not re.search(r"[;{]$", bare, re.MULTILINE))
        assert found == [made.labels["language"]], made.text
        assert pieces(made, f"code/language/{found[0]}") == pieces(made, "code/language") == [made.text]
        assert {s.concept for s in made.spans if s.concept.startswith("code/language/")} == {
            f"code/language/{found[0]}"
        }


MARKS = {
    "code/comment": r"(# .+|// .+|/\* .+ \*/)",
    "code/truth": r"True|False|true|false",
    "code/list": r"[\[{]\d+(, \d+)+[\]}]",
    "code/variable": r"[a-z]+",
    "code/type": r"int|bool|char|void|str|None|list\[int\]|i32|&str|&\[i32\]",
    "code/function": r"(def|fn|function|int|bool|void) \w+\(.*\).*(:|\{)|const \w+ = \(.*\) => \{",
    "code/function/name": r"[a-z][A-Za-z_]*",
    "code/call": r"[a-z][A-Za-z_]*\(.+\)",
    "code/print": r"(print|console\.log|printf|println!)\(.+\)",
    "code/assignment": r"[^=]+ [-+*]?= .+",
    "code/assignment/update": r"\w+ [-+*]?= .+",
    "code/loop/for": r"for .+[{:]",
    "code/loop/while": r"while .+[{:]",
    "code/condition/if": r"if .+[{:]",
    "code/condition/else_if": r"(else if|elif) .+[{:]",
    "code/condition/else": r"else ?[{:]",
    "code/comparison": r".+ (>|<|==|!=|===|!==) .+",
    "code/logic": r".+( and | or |&&|\|\|).+|(not |!).+",
    "code/arithmetic/addition": r".+ \+ .+",
    "code/arithmetic/subtraction": r".+ - .+",
    "code/arithmetic/multiplication": r".+ \* .+",
    "code/arithmetic/division": r"Math\.floor\(.+ / .+\)|[^.]+ //? [^)]+",
    "code/arithmetic/remainder": r".+ % .+",
}


def test_spans_mark_what_they_say() -> None:
    met: Counter[str] = Counter()
    for made in (one for split in SPLITS for one in sample(split)):
        for concept, pattern in MARKS.items():
            for piece in pieces(made, concept):
                assert re.fullmatch(pattern, piece), (concept, piece)
                met[concept] += 1
        lines = made.text.splitlines()
        comments = [line for line in lines if COMMENT.match(line)]
        assert pieces(made, "code/comment") == comments
        bare = "\n".join("" if line in comments else line for line in lines)
        assert pieces(made, "code/string") == STRING.findall(bare)
        bare = STRING.sub("", bare)
        assert Counter(pieces(made, "code/number")) == Counter(re.findall(r"\b\d+\b", bare))
        for concept, word in (("loop/for", "for"), ("loop/while", "while"), ("truth", "[Tt]rue|[Ff]alse")):
            assert len(pieces(made, f"code/{concept}")) == len(re.findall(rf"\b({word})\b", bare)), made.text
        branches = sum(len(pieces(made, f"code/condition/{one}")) for one in ("if", "else_if", "else"))
        assert branches == len(pieces(made, "code/condition")) == len(re.findall(r"\b(else if|elif|if|else)\b", bare))
        assert len(pieces(made, "code/print")) == len(re.findall(r"\b(print|printf|println|log)\b", bare))
    assert min(met[concept] for concept in MARKS) > 5


def skeleton(text: str) -> str:
    """A piece of Python without its names, texts and numbers but 0 and 1, and without types."""
    text = re.sub(r": (list\[int\]|list\b|int\b|str\b)| -> \w+", "", text)
    text = re.sub(r"\[\d+(, \d+)+\]", "LIST", STRING.sub("W", text))
    text = re.sub(r"\b([2-9]|\d\d|N|M|K|LOW|HIGH)\b", "#", text)
    text = re.sub(r"(\w+) ([-+*])= ", r"\1 = \1 \2 ", text)
    kept = {*keyword.kwlist, "print", "range", "LIST", "W"}
    return re.sub(r"[A-Za-z_]+", lambda word: word[0] if word[0] in kept else "n", text)


def snippet_parts(made: Document) -> list[tuple[str, str]]:
    """Comment (or nothing) and code of each snippet in a Python text; calls of a function are no snippets."""
    found: list[tuple[str, str]] = []
    for part in made.text.split("\n\n"):
        comment, _, rest = part.partition("\n") if part.startswith("# ") else ("", "", part)
        if not (found and found[-1][1].startswith("def ")):
            found.append((comment, rest))
    return found


def test_comments_say_what_the_next_lines_do() -> None:
    meant: dict[str, set[str]] = {}
    for one in code.snippets().values():
        for what in one.what:
            meant.setdefault(what, set()).add(skeleton(one.source))
    checked: set[str] = set()
    for split in SPLITS:
        for made in sample(split):
            for comment, rest in snippet_parts(made) if made.labels["language"] == "python" else ():
                fits = {what for what in meant if comment.endswith(what)}
                assert not comment or fits, comment
                assert not comment or any(skeleton(rest) in meant[what] for what in fits), made.text
                checked |= fits
    assert len(checked) > 0.6 * len(meant)


def test_probe_test_has_snippets_and_comments_of_its_own() -> None:
    shown: dict[str, set[str]] = {}
    for split in SPLITS:
        parts = [part for one in sample(split) if one.labels["language"] == "python" for part in snippet_parts(one)]
        shown[split] = {skeleton(rest) for _, rest in parts}
        new = [c for c, _ in parts if re.match("# (use these lines to|a small example: how to) ", c)]
        assert len(new) == (sum(bool(c) for c, _ in parts) if split == "probe_test" else 0)
        assert len([c for c, _ in parts if c]) > 40
    assert not shown["probe_test"] & (shown["train"] | shown["validation"] | shown["probe_train"])
    held_out = {skeleton(one) for kind in code.relations().values() for one in kind.of("probe_test")}
    assert shown["probe_test"] == held_out
    assert len(held_out) == sum(code.HELD_OUT.values()) == 14
    for kind, one in code.relations().items():
        assert len(one.of("train")) >= 8, kind
        assert {code.snippets()[source].kind for source in one.templates} == {kind}
    assert len(code.COMMENT.of("train")) >= 8
    # The words of held-out comments and functions are words that the others have.
    said: dict[str, set[str]] = {}
    for split in ("train", "probe_test"):
        sources = [source for one in code.relations().values() for source in one.of(split)]
        snippets = [code.snippets()[source] for source in sources]
        texts = [*code.COMMENT.of(split), *(text for one in snippets for text in (*one.what, *one.names))]
        said[split] = set(re.findall(r"[a-z]+", " ".join(texts)))
    assert len(said["probe_test"]) > 20
    assert said["probe_test"] <= said["train"]


def test_documents_are_whole_deterministic_and_of_bounded_length() -> None:
    described = code.describe()
    order = list(described)
    assert all("/" not in key or order.index(key.rpartition("/")[0]) < i for i, key in enumerate(order))
    for split in SPLITS:
        for i, made in enumerate(sample(split)):
            assert set(made.labels) == set(code.LABELS) == {"language"}
            assert pieces(made, "code") == [made.text]
            assert len(re.findall(r"\w+|[^\w\s]", made.text)) <= 110
            assert made.text == made.text.strip()
            assert not re.search(r"[ \t]$|\t|\b[A-Z]{2,}\b", made.text, re.MULTILINE)
            assert all(made.text[s.start : s.end].strip() and s.concept in described for s in made.spans)
            if i % 60 == 0:
                again = code.write(Draw(0, "code", split, i), split, f"code/{split}/0/{i}")
                assert again == made == corpus.document("code", split, i)
                assert again.text != code.write(Draw(1, "code", split, i), split, "").text
    for splits in (SPLITS, ("train",)):
        assert {s.concept for split in splits for one in sample(split) for s in one.spans} == set(described)


def test_texts_vary() -> None:
    for split in SPLITS:
        texts = [one.text for one in sample(split)[:500]]
        assert len(set(texts)) > 0.97 * len(texts), split
        counts = Counter(one.labels["language"] for one in sample(split))
        # Four deviations of a binomial with p = 1/4 and n = 600.
        assert all(abs(counts[language] / 600 - 0.25) < 0.071 for language in LANGUAGES)
