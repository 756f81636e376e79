"""How a parsed snippet is written in Python, JavaScript, C and Rust, with concepts on its parts.

The snippets of :mod:`saeworks.world.domains.code` use a small part of Python: whole numbers, texts, truths, lists of
numbers, loops over ranges and lists, conditions, and functions. Every line is a phrase; a block is a list of lines.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from saeworks.world.drawing import Draw
from saeworks.world.phrasing import Phrase, join, marked, phrase

LANGUAGES = ("python", "javascript", "c", "rust")
OPERATORS: dict[type[ast.AST], tuple[str, str, int]] = {
    ast.Add: ("+", "addition", 1),
    ast.Sub: ("-", "subtraction", 1),
    ast.Mult: ("*", "multiplication", 2),
    ast.FloorDiv: ("/", "division", 2),
    ast.Mod: ("%", "remainder", 2),
}
_COMPARISONS: dict[type[ast.AST], str] = {ast.Gt: ">", ast.Lt: "<", ast.Eq: "==", ast.NotEq: "!="}
_TYPES = {
    "python": {"int": "int", "str": "str", "bool": "bool", "list": "list[int]", "None": "None"},
    "c": {"int": "int", "str": "char", "bool": "bool", "list": "int", "None": "void"},
    "rust": {"int": "i32", "str": "&str", "bool": "bool", "list": "&[i32]"},
}
_FIRST = ("code/assignment", "code/assignment/first")
Part = Phrase | str


def glue(*parts: Part) -> Phrase:
    """Phrases and plain texts without anything between them."""
    return join([Phrase(part) if isinstance(part, str) else part for part in parts], "")


@dataclass
class Printer:
    """Writes statements in one language.

    Attributes:
        draw: The document's choices; habits of style are among them.
        language: One of ``LANGUAGES``.
        types: Types of the names in scope, functions included: ``int``, ``str``, ``bool``, ``list`` or ``None``.
        sizes: How long a list in scope is, which C must be told.
        known: Names in scope that have a value already.
        changing: Names in scope that get more than one value.
        inside: The name of the function that is being written, if any.
    """

    draw: Draw
    language: str
    types: dict[str, str] = field(default_factory=dict[str, str])
    sizes: dict[str, Phrase] = field(default_factory=dict[str, Phrase])
    known: set[str] = field(default_factory=set[str])
    changing: set[str] = field(default_factory=set[str])
    inside: str | None = None
    habits: dict[str, bool] = field(default_factory=dict[str, bool])

    def habit(self, name: str, p: float) -> bool:
        """A choice of style, made once for a document when it first shows."""
        if name not in self.habits:
            self.habits[name] = self.draw.chance(p)
        return self.habits[name]

    def enter(self, body: Sequence[ast.stmt], inside: str | None = None) -> None:
        """Begin a scope: forget the names of the one before, and count which names will change."""
        self.types = {name: kind for name, kind in self.types.items() if name.startswith("call ")}
        self.sizes, self.known, self.inside = {}, set(), inside
        nodes = [node for one in body for node in ast.walk(one)]
        given = [t.id for n in nodes if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
        given += [n.target.id for n in nodes if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)]
        self.changing = {name for name, count in Counter(given).items() if count > 1}

    # Expressions

    def type_of(self, node: ast.expr) -> str:
        """The type of an expression."""
        match node:
            case ast.Constant(value=value):
                return type(value).__name__
            case ast.Name(id=name):
                return self.types[name]
            case ast.Call(func=ast.Name(id=name)):
                return self.types[f"call {name}"]
            case ast.List():
                return "list"
            case ast.Compare() | ast.BoolOp():
                return "bool"
            case _:
                return "int"

    def expression(self, node: ast.expr, above: int = 0) -> Phrase:
        """An expression; ``above`` tells how strongly the operator around it binds."""
        match node:
            case ast.Constant(value=bool() as truth):
                return phrase(str(truth) if self.language == "python" else str(truth).lower(), "code/truth")
            case ast.Constant(value=int() as number):
                return phrase(str(number), "code/number")
            case ast.Constant(value=str() as words):
                # C and Rust have single quotes for something else.
                single = self.language in ("python", "javascript") and self.habit("single quotes", 0.3)
                return phrase(f"'{words}'" if single else f'"{words}"', "code/string")
            case ast.Name(id=name):
                return phrase(name, "code/variable")
            case ast.List(elts=elements):
                opening, closing = "{}" if self.language == "c" else "[]"
                inner = join([self.expression(one) for one in elements], ", ")
                return marked(glue(opening, inner, closing), "code/list")
            case ast.Subscript(value=inner, slice=index):
                return glue(self.expression(inner), "[", self.expression(index), "]")
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return glue("-", self.expression(inner, 3))
            case ast.UnaryOp(operand=inner):
                return marked(glue("not " if self.language == "python" else "!", self.expression(inner)), "code/logic")
            case ast.BinOp():
                return self.calculation(node, above)
            case ast.Compare(left=left, ops=[sign], comparators=[right]):
                return self.comparison(left, _COMPARISONS[type(sign)], right)
            case ast.BoolOp(op=op, values=values):
                word, sign = ("and", "&&") if isinstance(op, ast.And) else ("or", "||")
                between = f" {word if self.language == 'python' else sign} "
                return marked(join([self.expression(one) for one in values], between), "code/logic")
            case ast.Call(func=ast.Name(id=name), args=given):
                arguments = join([part for one in given for part in self.argument(one)], ", ")
                return marked(glue(self.spelt(name), "(", arguments, ")"), "code/call")
            case _:
                raise ValueError(f"no printer can write {ast.dump(node)}")

    def calculation(self, node: ast.BinOp, above: int) -> Phrase:
        """Two numbers and an operator, in brackets where the operator around it binds more strongly."""
        sign, name, strength = OPERATORS[type(node.op)]
        left, right = self.expression(node.left, strength), self.expression(node.right, strength + 1)
        concepts = ("code/arithmetic", f"code/arithmetic/{name}")
        if name == "division" and self.language == "javascript":
            return marked(glue("Math.floor(", left, " / ", right, ")"), *concepts)
        sign = "//" if name == "division" and self.language == "python" else sign
        made = marked(glue(left, f" {sign} ", right), *concepts)
        return glue("(", made, ")") if strength < above else made

    def comparison(self, left: ast.expr, sign: str, right: ast.expr) -> Phrase:
        """Two values compared; texts are compared by a function in C."""
        first, second = self.expression(left), self.expression(right)
        if self.language == "c" and self.type_of(left) == "str":
            return marked(
                glue("strcmp(", first, ", ", second, f") {sign} ", phrase("0", "code/number")), "code/comparison"
            )
        sign += "=" if self.language == "javascript" and sign in ("==", "!=") else ""
        return marked(glue(first, f" {sign} ", second), "code/comparison")

    def argument(self, node: ast.expr) -> list[Phrase]:
        """What stands in a call for an argument: C adds the size of a list, Rust borrows it."""
        if self.type_of(node) != "list":
            return [self.expression(node)]
        if self.language == "c" and isinstance(node, ast.Name):
            return [self.expression(node), self.sizes[node.id]]
        return [glue("&" if self.language == "rust" else "", self.expression(node))]

    def spelt(self, function: str) -> str:
        """``is_even``, in JavaScript ``isEven``."""
        first, *rest = function.split("_")
        return first + "".join(part.capitalize() for part in rest) if self.language == "javascript" else function

    # Statements

    def block(self, body: Sequence[ast.stmt], depth: int = 0) -> list[Phrase]:
        """The lines of some statements, indented."""
        indent = ("  " if self.language in ("javascript", "c") else "    ") if depth else ""
        lines = [line for one in body for line in self.statement(one)]
        return [glue(indent, line) for line in lines]

    def statement(self, node: ast.stmt) -> list[Phrase]:
        """The lines of one statement."""
        match node:
            case ast.FunctionDef():
                return self.function(node)
            case ast.For(target=ast.Name(id=name)):
                return self.loop(node, name)
            case ast.While(test=test):
                head = self.head("while", self.expression(test), "code/loop", "code/loop/while")
                return [head, *self.block(node.body, 1), *self.end()]
            case ast.If():
                return [*self.branches(node, "if"), *self.end()]
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                return [self.assignment(name, value)]
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                if self.habit("short updates", 0.5):
                    made = glue(phrase(name, "code/variable"), f" {OPERATORS[type(op)][0]}= ", self.expression(value))
                    return [glue(marked(made, "code/assignment", "code/assignment/update"), self.stop())]
                return [self.assignment(name, ast.BinOp(ast.Name(name), op, value))]
            case ast.Return(value=ast.expr() as value):
                made = marked(glue("return ", self.expression(value)), "code/return")
                return [glue(made, self.stop())]
            case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=[value])):
                return [glue(marked(self.print_call(value), "code/print"), self.stop())]
            case ast.Expr(value=value):
                return [glue(self.expression(value), self.stop())]
            case _:
                raise ValueError(f"no printer can write {ast.dump(node)}")

    def stop(self) -> str:
        """The end of a statement."""
        return "" if self.language == "python" else ";"

    def end(self) -> list[Phrase]:
        """The line that ends a block."""
        return [] if self.language == "python" else [Phrase("}")]

    def head(self, word: str, test: Phrase, *concepts: str) -> Phrase:
        """The first line of a block."""
        if self.language in ("python", "rust"):
            return marked(glue(f"{word} ", test, ":" if self.language == "python" else " {"), *concepts)
        return marked(glue(f"{word} (", test, ") {"), *concepts)

    def branches(self, node: ast.If, word: str) -> list[Phrase]:
        """The branches of a condition without the line that ends the last one."""
        first = ("code/condition", "code/condition/if" if word == "if" else "code/condition/else_if")
        lines = [self.head(word, self.expression(node.test), *first), *self.block(node.body, 1)]
        close = "" if self.language == "python" else "} "
        if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
            below = self.branches(node.orelse[0], "elif" if self.language == "python" else "else if")
            return [*lines, glue(close, below[0]), *below[1:]]
        if node.orelse:
            mark = phrase("else:" if self.language == "python" else "else {", "code/condition", "code/condition/else")
            lines += [glue(close, mark), *self.block(node.orelse, 1)]
        return lines

    def loop(self, node: ast.For, name: str) -> list[Phrase]:
        """A loop over a range or over a list."""
        concepts = ("code/loop", "code/loop/for")
        variable = phrase(name, "code/variable")
        self.types[name] = "int"
        first: list[Phrase] = []
        if isinstance(node.iter, ast.Call):
            low, high = [ast.Constant(0), *node.iter.args][-2:]
            if self.language == "python":
                edges = join([self.expression(one) for one in node.iter.args], ", ")
                head = self.head("for", glue(variable, " in range(", edges, ")"), *concepts)
            elif self.language == "rust":
                head = self.head(
                    "for", glue(variable, " in ", self.expression(low), "..", self.expression(high)), *concepts
                )
            else:
                head = self.head("for", self.counting(variable, self.expression(low), self.expression(high)), *concepts)
        elif self.language == "c":
            items, at = self.expression(node.iter), phrase("i", "code/variable")
            size = self.sizes[node.iter.id] if isinstance(node.iter, ast.Name) else Phrase("")
            head = self.head("for", self.counting(at, phrase("0", "code/number"), size), *concepts)
            element = marked(glue(phrase("int", "code/type"), " ", variable, " = ", items, "[", at, "]"), *_FIRST)
            first = [glue("  ", element, ";")]
        else:
            word = " of " if self.language == "javascript" else " in "
            before = {"javascript": "const ", "rust": "&" if self.inside else ""}.get(self.language, "")
            head = self.head("for", glue(before, variable, word, self.expression(node.iter)), *concepts)
        return [head, *first, *self.block(node.body, 1), *self.end()]

    def counting(self, variable: Phrase, low: Phrase, high: Phrase) -> Phrase:
        """The three parts of a counting loop in C and JavaScript."""
        word: Part = phrase("int", "code/type") if self.language == "c" else "let"
        return glue(word, " ", variable, " = ", low, "; ", variable, " < ", high, "; ", variable, "++")

    def assignment(self, name: str, value: ast.expr) -> Phrase:
        """A variable gets a value; the first time it is declared where the language wants that."""
        variable, made = phrase(name, "code/variable"), self.expression(value)
        if name in self.known:
            return glue(marked(glue(variable, " = ", made), "code/assignment", "code/assignment/update"), self.stop())
        self.known.add(name)
        kind = self.types[name] = self.type_of(value)
        if isinstance(value, ast.List):
            self.sizes[name] = phrase(str(len(value.elts)), "code/number")
        changes = name in self.changing
        before: Part = ""
        if self.language == "javascript":
            before = "let " if changes else "const "
        elif self.language == "rust":
            before = "let mut " if changes else "let "
        elif self.language == "c":
            before = glue(phrase(_TYPES["c"][kind], "code/type"), " *" if kind == "str" else " ")
        after = "[]" if self.language == "c" and kind == "list" else ""
        return glue(marked(glue(before, variable, after, " = ", made), *_FIRST), self.stop())

    def print_call(self, value: ast.expr) -> Phrase:
        """The call that prints a value."""
        if self.language in ("python", "javascript"):
            return glue("print(" if self.language == "python" else "console.log(", self.expression(value), ")")
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            line = value.value + ("\\n" if self.language == "c" else "")
            return glue("printf(" if self.language == "c" else "println!(", phrase(f'"{line}"', "code/string"), ")")
        slot = {"str": "%s\\n"}.get(self.type_of(value), "%d\\n") if self.language == "c" else "{}"
        call = "printf(" if self.language == "c" else "println!("
        return glue(call, phrase(f'"{slot}"', "code/string"), ", ", self.expression(value), ")")

    def function(self, node: ast.FunctionDef) -> list[Phrase]:
        """The definition of a function."""
        gives = "int" if node.returns is None else ast.unparse(node.returns)
        self.enter(node.body, node.name)
        self.types[f"call {node.name}"] = gives
        parameters: list[Phrase] = []
        for one in node.args.args:
            kind = self.types[one.arg] = "int" if one.annotation is None else ast.unparse(one.annotation)
            self.known.add(one.arg)
            self.sizes[one.arg] = phrase("size", "code/variable")
            parameters += self.parameter(one.arg, kind)
        name = phrase(self.spelt(node.name), "code/function/name")
        inside = join(parameters, ", ")
        head = marked(self.function_head(name, inside, gives), "code/function")
        lines = self.block(node.body, 1)
        last = node.body[-1]
        if self.language == "rust" and isinstance(last, ast.Return) and last.value is not None:
            lines[-1] = glue("    ", marked(self.expression(last.value), "code/return"))
        arrow = self.language == "javascript" and self.habit("arrows", 0.3)
        return [head, *lines, *([Phrase("};")] if arrow else self.end())]

    def parameter(self, name: str, kind: str) -> list[Phrase]:
        """A parameter with its type where the language has one; C adds the size of a list."""
        variable = phrase(name, "code/variable")
        if self.language == "javascript" or (self.language == "python" and not self.habit("types", 0.4)):
            return [variable]
        word = phrase(_TYPES[self.language][kind], "code/type")
        if self.language != "c":
            return [glue(variable, ": ", word)]
        if kind == "list":
            return [glue(word, " ", variable, "[]"), glue(word, " ", phrase("size", "code/variable"))]
        return [glue(word, " *" if kind == "str" else " ", variable)]

    def function_head(self, name: Phrase, inside: Phrase, gives: str) -> Phrase:
        """The first line of a definition."""
        if self.language == "javascript":
            arrow = self.habit("arrows", 0.3)
            return (
                glue("const ", name, " = (", inside, ") => {") if arrow else glue("function ", name, "(", inside, ") {")
            )
        if self.language == "c":
            return glue(phrase(_TYPES["c"][gives], "code/type"), " ", name, "(", inside, ") {")
        typed = self.language == "rust" or self.habit("types", 0.4)
        word = phrase(_TYPES[self.language].get(gives, ""), "code/type")
        result = glue(" -> ", word) if typed and word.text else Phrase("")
        if self.language == "rust":
            return glue("fn ", name, "(", inside, ")", result, " {")
        return glue("def ", name, "(", inside, ")", result, ":")
