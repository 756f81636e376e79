"""Code that runs: every snippet does what it says, and does the same in every language."""

from __future__ import annotations

import ast
import contextlib
import io
import math
import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from saeworks.world.documents import Document
from saeworks.world.domains import code
from saeworks.world.domains.code_printing import LANGUAGES, Printer
from saeworks.world.drawing import Draw, Pool
from saeworks.world.phrasing import SPLITS, Phrase


@cache
def sample(split: str, count: int = 600) -> tuple[Document, ...]:
    return tuple(code.write(Draw(0, "code", split, i), split, f"code/{split}/0/{i}") for i in range(count))


@cache
def printed(language: str, source: str, index: int = 0) -> str:
    """A snippet as a whole program of a language; the same names and numbers in every language."""
    draw = Draw("program", source, index)
    snippet = code.snippets()[source]
    names = {slot: Pool(options) for slot, options in code._NAMES.items()}
    body = code.Filling(draw, names, snippet.names).visit(ast.parse(source)).body
    printer = Printer(draw, language)
    lines: list[Phrase] = []
    if snippet.kind == "function":
        after = code._call(draw, body[0])
        lines, body = printer.block(body), after
    lines += code._statements(draw, printer, body, language in ("c", "rust"))
    return "\n".join(line.text for line in lines) + "\n"


def output(text: str) -> list[str]:
    return [{"True": "1", "true": "1", "False": "0", "false": "0"}.get(line, line) for line in text.split()]


# A reader of its own: what C, JavaScript and Rust say here, line by line in Python.
# A comment has a line of its own; in Python two strokes are a division.
COMMENT = re.compile(r"^(# |// |/\* ).*$", re.MULTILINE)
STRING = re.compile(r"\"[^\"]*\"|'[^']*'")
LOOPS = (
    (r"for \((?:int|let) (\w+) = (\S+); \1 < (.+); \1\+\+\) \{", r"for \1 in range(\2, \3):"),
    (r"for \(const (\w+) of (\w+)\) \{", r"for \1 in \2:"),
    (r"for (\w+) in (\S+?)\.\.(.+) \{", r"for \1 in range(\2, \3):"),
    (r"for &?(\w+) in (\w+) \{", r"for \1 in \2:"),
)
HEADS = (
    r"(?:int|bool|void) (?P<name>\w+)\((?P<inside>.*)\) \{",
    r"function (?P<name>\w+)\((?P<inside>.*)\) \{",
    r"const (?P<name>\w+) = \((?P<inside>.*)\) => \{",
    r"fn (?P<name>\w+)\((?P<inside>.*)\)(?: -> (?:i32|bool))? \{",
)
DECLARED = re.compile(r"(?P<word>int |bool |char \*|const |let mut |let )(?P<name>\w+)(?:\[\])? = (?P<value>.+);")
AGAIN = re.compile(r"(?P<name>\w+) (?P<sign>[-+*]?)= (?P<value>.+);")


def value(language: str, text: str) -> str:
    """An expression of any of the languages in Python; only in JavaScript a division leaves a fraction."""
    text = re.sub(r"^\{(.*)\}$", r"[\1]", text)
    text = text.replace("!==", "!=").replace("===", "==").replace("&&", " and ").replace("||", " or ")
    text = text.replace("Math.floor", "floor") if language == "javascript" else text.replace(" / ", " // ")
    text = re.sub(r"!(?!=)", " not ", text).replace("&", "")
    return re.sub(r"\btrue\b", "True", re.sub(r"\bfalse\b", "False", text)).strip()


def simple(language: str, line: str, fixed: set[str], changing: set[str]) -> str:
    """A statement that opens no block; names that may not change are told from those that may."""
    if found := re.fullmatch(r"console\.log\((.*)\);", line):
        return f"print({value(language, found[1])})"
    if found := re.fullmatch(r"(?:printf|println!)\(\"(.*?)(?:\\n)?\"(?:, (.*))?\);", line):
        assert line.count("\\n") == (language == "c"), line
        assert found[2] is None or found[1] in (("%d", "%s") if language == "c" else ("{}",)), line
        shown = f'"{found[1]}"' if found[2] is None else value(language, found[2])
        return f"print(int({shown}))" if found[1] == "%d" else f"print({shown})"
    if found := DECLARED.fullmatch(line):
        assert found["name"] not in fixed | changing, f"declared twice: {line}"
        last = {"javascript": ("const ",), "rust": ("let ",)}.get(language, ())
        (fixed if found["word"] in last else changing).add(found["name"])
        return f"{found['name']} = {value(language, found['value'])}"
    if found := AGAIN.fullmatch(line):
        assert found["name"] in changing, f"must not change: {line}"
        return f"{found['name']} {found['sign']}= {value(language, found['value'])}"
    if line.endswith(";"):
        inner = line[:-1]
        return f"return {value(language, inner[7:])}" if inner.startswith("return ") else value(language, inner)
    assert language == "rust", line
    return f"return {value(language, line)}"  # The last expression of a function is its value.


def as_python(language: str, text: str) -> str:
    """A text in C, JavaScript or Rust, said in Python."""
    if language == "python":
        return text
    lines: list[str] = []
    depth, step = 0, 4 if language == "rust" else 2
    fixed, changing, inside = set[str](), set[str](), False
    for raw in text.splitlines():
        line = COMMENT.sub("", raw).strip()
        if not line:
            continue
        depth -= line.startswith("}")
        assert len(raw) - len(raw.lstrip()) == depth * step, f"indented wrongly: {raw!r}"
        line = line.removeprefix("} ")
        if line in ("}", "};"):
            # Behind a function at the margin begins a scope of its own.
            fixed, changing = (set(), set()) if depth == 0 and inside else (fixed, changing)
            inside = inside and depth > 0
            continue
        opens = line.endswith("{")
        if not opens:
            made = simple(language, line, fixed, changing)
        elif line == "else {":
            made = "else:"
        elif found := re.fullmatch(r"(while|else if|if) (.*) \{", line):
            assert language == "rust" or re.fullmatch(r"\(.*\)", found[2]), line
            made = f"{found[1].replace('else if', 'elif')} {value(language, found[2])}:"
        elif line.startswith("for "):
            pattern, says = next(loop for loop in LOOPS if re.fullmatch(loop[0], line))
            made = value(language, re.sub(pattern, says, line))
        else:
            head = next(found for pattern in HEADS if (found := re.fullmatch(pattern, line)))
            names = re.findall(r"(\w+)(?:: &?[\w\[\]]+|\[\])?(?:,|$)", head["inside"].replace("void", ""))
            fixed, changing, inside = set(names), set(), True
            made = f"def {head['name']}({', '.join(names)}):"
        lines.append("    " * depth + made)
        depth += opens
    assert depth == 0, text
    return "\n".join([*lines, "main()"] if "def main():" in lines else lines)


def run(language: str, text: str) -> tuple[list[str], dict[str, Any]]:
    """What a text prints when it is run, and the names that it leaves."""
    space: dict[str, Any] = {"floor": math.floor, "strcmp": lambda a, b: int(a != b)}
    with contextlib.redirect_stdout(io.StringIO()) as caught:
        exec(as_python(language, text), space)
    return output(caught.getvalue()), space


def given(text: str) -> tuple[list[int], list[str]]:
    """The numbers and the texts of a program in order."""
    return [int(n) for n in re.findall(r"\b\d+\b", STRING.sub("", text))], [s[1:-1] for s in STRING.findall(text)]


# What every snippet must do, by what it says it does; n are the numbers in it, w the texts.
FUNCTIONS: dict[str, Any] = {
    "add two numbers": lambda n, x, y: x + y,
    "multiply a number by itself": lambda n, x: x**2,
    "multiply a number by two": lambda n, x: x + x,
    "find the larger of two numbers": lambda n, x, y: max(x, y),
    "find the smaller of two numbers": lambda n, x, y: min(x, y),
    "test if a number is even": lambda n, x: not x & 1,
    "test if a number is positive": lambda n, x: x > 0,
    "test if a number lies between two others": lambda n, x: n[0] < x < n[1],
    "remove the sign of a number": lambda n, x: abs(x),
    "find the sign of a number": lambda n, x: 0 if not x else int(math.copysign(1, x)),
    "add all numbers of a list": lambda n, xs: sum(xs),
    "find the largest number of a list": lambda n, xs: max(xs),
    "count the even numbers of a list": lambda n, xs: len([x for x in xs if not x & 1]),
    "multiply all numbers from one to the last": lambda n, x: math.factorial(x),
    "add the numbers down to zero": lambda n, x: x * (x + 1) // 2,
    "say hello": lambda n, s: ["hello", s],
    "print a word many times": lambda n, s, x: [s] * x,
    "subtract two numbers": lambda n, x, y: x - y,
    "test if a number is odd": lambda n, x: bool(x & 1),
    "find the smallest number of a list": lambda n, xs: min(xs),
    "find the product of a list": lambda n, xs: math.prod(xs),
}
PROGRAMS: dict[str, dict[str, Any]] = {
    "loop": {
        "print the first numbers": lambda n, w: range(n[0]),
        "print all numbers of a list": lambda n, w: n,
        "add the first numbers": lambda n, w: [n[1] * (n[1] - 1) // 2],
        "count down to zero": lambda n, w: range(n[0], 0, -1),
        "multiply by two again and again": lambda n, w: [1 << (n[1] - 1).bit_length()],
        "print the even numbers": lambda n, w: range(0, n[0], 2),
        "count the large numbers of a list": lambda n, w: [sum(v > n[-2] for v in n[:-3])],
        "print a word many times": lambda n, w: w * n[0],
        "print the square of every number": lambda n, w: [i**2 for i in range(1, n[1])],
        "print a small table": lambda n, w: [i * j for i in (0, 1, 2) for j in range(n[1])],
        "multiply all numbers of a list": lambda n, w: [math.prod(n)],
        "find a number in a list": lambda n, w: ["found"] * n[:-1].count(n[-1]),
        "subtract a number again and again": lambda n, w: [(n[0] - 1) % n[1] + 1],
        "print the odd numbers": lambda n, w: range(1, n[0], 2),
        "print twice every number": lambda n, w: range(0, 2 * n[0], 2),
        "count the small numbers of a list": lambda n, w: [sum(v < n[-2] for v in n[:-3])],
        "count to a number": lambda n, w: range(1, n[1]),
    },
    "condition": {
        "test if a number is large": lambda n, w: ["large" if n[0] > n[1] else "small"],
        "test if two numbers are equal": lambda n, w: ["equal"] * (n[0] == n[1]),
        "test if a word is the right one": lambda n, w: ["yes" if w[0] == w[1] else "no"],
        "test if a number is even": lambda n, w: ["odd" if n[0] & 1 else "even"],
        "test if a number lies between two others": lambda n, w: ["inside"] * (n[1] < n[0] < n[2]),
        "test if a number lies outside": lambda n, w: ["outside"] * (not n[1] <= n[0] <= n[2]),
        "find the sign of a number": lambda n, w: [["zero", "above", "below"][(n[0] > n[1]) - (n[0] < n[1])]],
        "print the larger of two numbers": lambda n, w: [max(n)],
        "say yes if it is true": lambda n, w: ["yes"],
        "say no if it is not true": lambda n, w: ["no"],
        "look at the first number of a list": lambda n, w: ["large"] * (n[0] > n[-1]),
        "say if a number is low or high": lambda n, w: ["low" if n[0] < n[1] else "high" if n[0] > n[2] else "good"],
        "test if two numbers are not equal": lambda n, w: ["no"] * (n[0] != n[1]),
        "print the smaller of two numbers": lambda n, w: [min(n)],
        "look at two numbers of a list": lambda n, w: ["equal" if n[0] == n[1] else "no"],
    },
    "statement": {
        "print a number": lambda n, w: n,
        "add two numbers": lambda n, w: [sum(n)],
        "print a word": lambda n, w: w,
        "make a list": lambda n, w: n[:1],
        "add to a number": lambda n, w: [sum(n)],
        "subtract from a number": lambda n, w: [n[0] - n[1]],
        "multiply two numbers": lambda n, w: [n[0] * n[1]],
        "test which number is larger": lambda n, w: [int(n[0] > n[1])],
        "say hello": lambda n, w: ["hello", w[1]],
        "print half of a number": lambda n, w: [int(n[0] / 2)],
        "find the rest after division": lambda n, w: [n[0] % n[1]],
        "exchange two numbers": lambda n, w: [],
        "subtract two numbers": lambda n, w: [n[0] - n[1]],
        "find the half of a sum": lambda n, w: [int((n[0] + n[1]) / 2)],
        "print a word and another": lambda n, w: w,
    },
}


def of_kind(kind: str) -> list[code.Snippet]:
    return [one for one in code.snippets().values() if one.kind == kind]


def test_all_snippets_are_known_to_this_test() -> None:
    tables = {**PROGRAMS, "function": FUNCTIONS}
    for kind, table in tables.items():
        assert [one.what[0] for one in of_kind(kind)] == list(table)
    assert sum(map(len, tables.values())) == len(code.snippets())


@pytest.mark.parametrize("language", LANGUAGES)
def test_functions_give_back_what_they_say(language: str) -> None:
    for snippet in of_kind("function"):
        function = ast.parse(snippet.source).body[0]
        assert isinstance(function, ast.FunctionDef)
        kinds = [one.annotation and ast.unparse(one.annotation) for one in function.args.args]
        signed = re.search("sign|positive|larg|small", snippet.what[0])
        for i in range(8):
            text = printed(language, snippet.source, i)
            head = text if language == "python" else text.partition("\nint main" if language == "c" else "\nfn main")[0]
            _, space = run("python", as_python(language, head).replace("\nmain()", ""))
            defined = [one for name, one in space.items() if name not in ("floor", "strcmp") and callable(one)][-1]
            draw = Draw("arguments", language, snippet.source, i)
            low = -6 if signed else 0
            numbers = {"list": [1 + draw.number(12) for _ in range(4)], "str": "bird"}
            arguments: list[Any] = [numbers[k] if k in numbers else low + draw.number(9 - low) for k in kinds]
            passed = [part for one in arguments for part in ((one, 4) if type(one) is list else (one,))]
            with contextlib.redirect_stdout(io.StringIO()) as caught:
                result = defined(*(passed if language == "c" else arguments))
            expected = FUNCTIONS[snippet.what[0]](given(head)[0], *arguments)
            said = caught.getvalue().split() if isinstance(expected, list) else result
            assert said == expected, (text, arguments)
            assert type(said) is type(expected), text


@pytest.mark.parametrize("kind", PROGRAMS)
def test_programs_print_what_they_say(kind: str) -> None:
    lengths: set[int] = set()
    for snippet in of_kind(kind):
        for i in range(12):
            text = printed("python", snippet.source, i)
            shown, space = run("python", text)
            numbers, words = given(text)
            assert shown == [str(one) for one in PROGRAMS[kind][snippet.what[0]](numbers, words)], text
            lengths.add(len(shown))
            if snippet.what[0] == "exchange two numbers":
                first, second = re.findall(r"^(\w+) = \d+$", text, re.MULTILINE)
                assert [space[first], space[second]] == numbers[::-1]
    assert len(lengths) > 1


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_every_language_prints_the_same(language: str) -> None:
    printing = 0
    for source in code.snippets():
        for i in range(6):
            program, text = printed("python", source, i), printed(language, source, i)
            shown, _ = run("python", program)
            assert run(language, text)[0] == shown, (program, text)
            printing += bool(shown)
    assert printing > 5 * len(code.snippets())


def together(language: str) -> str:
    """All programs of a language as one, each of which first prints its number."""
    parts: list[str] = []
    for i, source in enumerate(code.snippets()):
        text = printed(language, source)
        if language == "javascript":
            text = f"console.log('part {i}');\n{{\n{text}}}\n"
        if language == "rust":
            text = f"mod m{i} {{\n{text.replace('fn main', 'pub fn main')}}}\n"
        for name in re.findall(r"^(?:int|bool|void) (\w+)\(", text, re.MULTILINE) if language == "c" else ():
            text = re.sub(rf"\b{name}\(", f"{name}_{i}(", text)
        parts.append(text)
    if language == "c":
        calls = "".join(f'  printf("part {i}\\n");\n  main_{i}();\n' for i in range(len(parts)))
        head = "#include <stdbool.h>\n#include <stdio.h>\n#include <string.h>\n"
        return f"{head}{''.join(parts)}int main(void) {{\n{calls}  return 0;\n}}\n"
    if language == "rust":
        calls = "".join(f'    println!("part {i}");\n    m{i}::main();\n' for i in range(len(parts)))
        return f"#![allow(unused)]\n#![deny(unused_mut)]\n{''.join(parts)}fn main() {{\n{calls}}}\n"
    return "".join(parts)


@pytest.mark.parametrize(("language", "tool"), [("javascript", "node"), ("c", "cc"), ("rust", "rustc")])
def test_real_tools_run_every_snippet(language: str, tool: str, tmp_path: Path) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    file = tmp_path / f"all.{ {'javascript': 'js', 'c': 'c', 'rust': 'rs'}[language] }"
    file.write_text(together(language), encoding="utf-8")
    command = [tool, str(file)]
    if language != "javascript":
        options = ["-Wall", "-Werror=format", "-Werror=implicit-function-declaration"] if language == "c" else []
        built = subprocess.run([*command, *options, "-o", str(tmp_path / "all")], capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        command = [str(tmp_path / "all")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"part \d+\n", shown)[1:]
    assert [output(part) for part in parts] == [
        run("python", printed("python", source))[0] for source in code.snippets()
    ]


@pytest.mark.parametrize("split", SPLITS)
def test_every_document_can_be_run_in_its_language(split: str) -> None:
    counts: Counter[str] = Counter()
    for made in sample(split):
        language = str(made.labels["language"])
        shown, _ = run(language, made.text)
        counts[language] += bool(shown)
        if language == "python":
            ast.parse(made.text)
        bare = STRING.sub("", COMMENT.sub("", made.text))
        stack: list[str] = []
        for sign in re.findall(r"[()\[\]{}]", bare):
            if sign in "([{":
                stack.append(sign)
            else:
                assert stack.pop() + sign in ("()", "[]", "{}"), made.text
        assert not stack
        # What is declared as changing does change; the reader has seen that nothing else does.
        word = {"javascript": "let", "rust": "let mut"}.get(language, "nothing")
        changing = re.findall(rf"^ *{word} (\w+) =", made.text, re.MULTILINE)
        assert set(changing) <= set(re.findall(r"^ *(\w+) [-+*]?= ", made.text, re.MULTILINE))
    assert min(counts[language] for language in LANGUAGES) > 40
