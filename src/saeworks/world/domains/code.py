"""Short snippets in four programming languages.

Document label: ``language``. It is by nature a matter of words: the keywords and signs of a language tell it, to a
count of words as to anybody else. What the two probe splits have of their own are whole snippets.

Every snippet is written once, in Python, in ``data/code.txt``. It is parsed, its capitals are filled with names and
numbers, and :mod:`code_printing` writes it in the document's language. So the languages say the same things, and a
snippet is correct in all of them when the printer is. C and Rust put statements into ``main`` when a function is
called, and otherwise in half of the documents.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from saeworks.world.documents import Document
from saeworks.world.domains.code_printing import LANGUAGES, OPERATORS, Printer, glue
from saeworks.world.drawing import Draw, Pool, Weighted
from saeworks.world.knowledge import read_data
from saeworks.world.phrasing import Phrase, Relation, finish, join, marked, phrase, relation, render

LABELS = ("language",)
# How many snippets of a kind are kept for probe_test.
HELD_OUT = {"function": 4, "loop": 4, "condition": 3, "statement": 3}
# A definition of that many lines stays without a call, so that the text fits the language model's context.
_LONG = 9

COMMENT = relation(
    "{what}",
    "how to {what}",
    "we want to {what}",
    "here we {what}",
    "a small program to {what}",
    "use this to {what}",
    "the next lines {what}",
    "example: {what}",
    "first {what}",
    "these lines {what}",
    "an easy way to {what}",
    "use these lines to {what}",
    "a small example: how to {what}",
)
# What the slots are filled with; a document takes no name twice.
_NAMES: dict[str, tuple[str, ...]] = {
    "X": ("x", "y", "a", "b", "n", "m", "number"),
    "T": ("total", "count", "score"),
    "R": ("result", "answer", "best"),
    "S": ("name", "word", "colour", "city"),
    "Q": ("ready", "done", "full"),
    "XS": ("numbers", "values", "prices", "points"),
    "V": ("item", "value", "point", "each"),
}
_SAME_NAMES = {"Y": "X", "U": "X"}
_WORDS = ("red", "blue", "green", "cat", "dog", "bird", "apple", "bread", "Anna", "Leo", "Paris", "Rome")
_KIND = Weighted(tuple(HELD_OUT), (5.0, 3.0, 3.0, 2.0))


@dataclass(frozen=True, slots=True)
class Snippet:
    """One entry of the table: its kind, what it does in words, names its function may have, its lines of Python."""

    kind: str
    what: tuple[str, ...]
    names: tuple[str, ...]
    source: str


@cache
def snippets() -> dict[str, Snippet]:
    """All snippets by their source, in file order."""
    found: dict[str, Snippet] = {}
    for block in read_data("code.txt").split("\n@")[1:]:
        head, _, source = block.partition("\n")
        kind, what, *names = (part.strip() for part in head.split("|"))
        functions = tuple(names[0].split(", ")) if names else ()
        found[source.strip()] = Snippet(kind, tuple(what.split("; ")), functions, source.strip())
    return found


@cache
def relations() -> dict[str, Relation]:
    """For each kind the sources of its snippets, the last ones held out."""
    return {
        kind: Relation(tuple(s.source for s in snippets().values() if s.kind == kind), held_out)
        for kind, held_out in HELD_OUT.items()
    }


def describe() -> dict[str, str]:
    """Every concept of the domain with what its spans mark, parents before children."""
    found = {"code": "any text of a snippet of code", "code/language": "the language that a snippet is written in"}
    found |= {f"code/language/{name}": f"any text of a snippet in {name}" for name in LANGUAGES}
    found |= {
        "code/comment": "a comment with the signs that make it one",
        "code/string": "text in quotation marks, with the marks",
        "code/number": "a number written in digits",
        "code/truth": "the word for true or false",
        "code/list": "a list of numbers with its brackets",
        "code/variable": "the name of a variable, a parameter or a list",
        "code/type": "the word for a type",
        "code/function": "the head of the definition of a function",
        "code/function/name": "the name of a function in the head of its definition",
        "code/call": "a call of a function that the snippet defines, with its arguments",
        "code/return": "the statement, in Rust also the last expression, that gives back the value of a function",
        "code/print": "a statement that prints",
        "code/assignment": "a statement that gives a value to a variable",
        "code/assignment/first": "a statement that gives a variable its first value",
        "code/assignment/update": "a statement that gives a variable another value",
        "code/loop": "the head of a loop",
        "code/loop/for": "the head of a loop over numbers or a list",
        "code/loop/while": "the head of a loop that goes on while something is true",
        "code/condition": "the head of one branch of a condition",
        "code/condition/if": "the head of the first branch of a condition",
        "code/condition/else_if": "the head of a further branch with its own test",
        "code/condition/else": "the head of the branch for all other cases",
        "code/comparison": "two values with a sign of comparison between them",
        "code/logic": "truths joined by and, or, not",
        "code/arithmetic": "a calculation with two numbers",
    }
    return found | {f"code/arithmetic/{name}": f"a calculation: {name}" for _, name, _ in OPERATORS.values()}


class Filling(ast.NodeTransformer):
    """Fills the capitals of a snippet; a choice is made when its capital is first met.

    Args:
        draw: The document's choices.
        names: Pools of names that all snippets of the document share.
        functions: Names that the function may have.
    """

    def __init__(self, draw: Draw, names: dict[str, Pool[str]], functions: Sequence[str]) -> None:
        self._draw, self._names, self._functions = draw, names, functions
        self._filled: dict[str, str | int] = {"I": "i", "J": "j"}

    def _fill(self, slot: str) -> str | int:
        if slot not in self._filled:
            if slot == "F":
                self._filled[slot] = self._draw.pick(self._functions)
            elif slot in ("N", "M", "K", "LOW"):
                self._filled[slot] = 2 + self._draw.number(11)
            elif slot == "HIGH":
                self._filled[slot] = int(self._fill("LOW")) + 2 + self._draw.number(9)
            else:
                self._filled[slot] = self._names[_SAME_NAMES.get(slot, slot)].take(self._draw)
        return self._filled[slot]

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A name, a number, a word or a list in the place of its slot."""
        if node.id == "W":
            return ast.Constant(self._draw.pick(_WORDS))
        if node.id == "LIST":
            return ast.List([ast.Constant(1 + self._draw.number(12)) for _ in range(3 + self._draw.number(3))])
        if not node.id.isupper():
            return node
        filled = self._fill(node.id)
        return ast.Constant(filled) if isinstance(filled, int) else ast.Name(filled)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """The name of the function, then its parameters, then its body."""
        node.name = str(self._fill("F"))
        for one in node.args.args:
            one.arg = str(self._fill(one.arg))
        node.body = [self.visit(one) for one in node.body]
        return node


def _call(draw: Draw, function: ast.FunctionDef) -> list[ast.stmt]:
    """Statements that call the function once and print what it gives back."""
    lines: list[str] = []
    given: list[str] = []
    for one in function.args.args:
        kind = "int" if one.annotation is None else ast.unparse(one.annotation)
        if kind == "list":
            numbers = [1 + draw.number(12) for _ in range(3 + draw.number(3))]
            lines.append(f"{one.arg} = {numbers}")
            given.append(one.arg)
        else:
            given.append(repr(draw.pick(_WORDS)) if kind == "str" else str(2 + draw.number(9)))
    call = f"{function.name}({', '.join(given)})"
    nothing = function.returns is not None and ast.unparse(function.returns) == "None"
    return ast.parse("\n".join([*lines, call if nothing else f"print({call})"])).body


def _comment(printer: Printer, split: str, what: Sequence[str]) -> Phrase:
    """A comment line that says what the next lines do."""
    said = render(COMMENT.draw(printer.draw, split), what=printer.draw.pick(what)).text
    if printer.language == "python":
        return phrase(f"# {said}", "code/comment")
    starred = printer.language in ("javascript", "c") and printer.habit("starred comments", 0.3)
    return phrase(f"/* {said} */" if starred else f"// {said}", "code/comment")


def _main(printer: Printer, body: Sequence[ast.stmt]) -> list[Phrase]:
    """The statements inside the function where a C or Rust program begins."""
    printer.enter(body)
    inside = printer.block(body, 1)
    name = phrase("main", "code/function/name")
    if printer.language == "rust":
        return [marked(glue("fn ", name, "() {"), "code/function"), *inside, Phrase("}")]
    word = phrase("int", "code/type")
    head = marked(glue(word, " ", name, "(", phrase("void", "code/type"), ") {"), "code/function")
    end = glue("  ", marked(glue("return ", phrase("0", "code/number")), "code/return"), ";")
    return [head, *inside, end, Phrase("}")]


def _statements(draw: Draw, printer: Printer, body: Sequence[ast.stmt], program: bool) -> list[Phrase]:
    """Statements outside a function, or in ``main``."""
    if program:
        return _main(printer, body)
    printer.enter(body)
    return printer.block(body)


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One text of one or two snippets. Its single label has nothing to be correlated with; ``spurious`` is unused."""
    language = draw.pick(LANGUAGES)
    printer = Printer(draw, language)
    names = {slot: Pool(options) for slot, options in _NAMES.items()}
    kind = draw.weighted(_KIND)
    sources = [relations()[kind].draw(draw, split)]
    if kind == "statement" and draw.chance(0.5):
        # A short snippet is often followed by another one, which is a text of its own with its own names.
        sources.append(relations()[draw.pick(("condition", "statement"))].draw(draw, split))
    programs = language in ("c", "rust")
    parts: list[Phrase] = []
    for source in sources:
        snippet = snippets()[source]
        body = Filling(draw, names, snippet.names).visit(ast.parse(source)).body
        lines = [_comment(printer, split, snippet.what)] if draw.chance(0.6) else []
        if kind == "function":
            lines += printer.block(body)
            if len(lines) < _LONG and draw.chance(0.6):
                after = _call(draw, body[0])
                lines += [Phrase(""), *_statements(draw, printer, after, programs)]
        else:
            # Two snippets would need two beginnings of the program.
            lines += _statements(draw, printer, body, programs and len(sources) == 1 and draw.chance(0.5))
        parts.append(join(lines, "\n"))
    whole = marked(join(parts, "\n\n"), "code", "code/language", f"code/language/{language}")
    return finish(whole, {"language": language}, identity)
