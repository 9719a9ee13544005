"""What drawn.py can change in a source file, and the draw of some of it.

A change replaces one expression or statement. Left alone is what says nothing about behaviour:
docstrings, imports, annotations, decorators, assertions, f-strings, and the words of errors.
"""

import ast
import copy
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARISONS: dict[type[ast.cmpop], list[ast.cmpop]] = {
    ast.Lt: [ast.LtE(), ast.GtE()],
    ast.LtE: [ast.Lt(), ast.Gt()],
    ast.Gt: [ast.GtE(), ast.LtE()],
    ast.GtE: [ast.Gt(), ast.Lt()],
    ast.Eq: [ast.NotEq()],
    ast.NotEq: [ast.Eq()],
    ast.Is: [ast.IsNot()],
    ast.IsNot: [ast.Is()],
    ast.In: [ast.NotIn()],
    ast.NotIn: [ast.In()],
}
ARITHMETIC: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.Mult: ast.Div(),
    ast.Div: ast.Mult(),
    ast.FloorDiv: ast.Mult(),
    ast.Mod: ast.FloorDiv(),
}
OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}
KEYED = ("get", "pop", "setdefault", "getattr", "hasattr")
# Nobody can notice these: what they say is the default here, words, or a check of a caller.
KEYWORDS_LEFT = ("encoding", "strict", "stacklevel", "help")
PATHS = re.compile(r"folder|path|root|parent|output|here|\bdir", re.IGNORECASE)
SILENT = (ast.Import, ast.ImportFrom, ast.Assert, ast.JoinedStr)


@dataclass(frozen=True)
class Change:
    """A place in a file, what is put there, and which lines would run it."""

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str
    first: int
    last: int
    in_function: bool

    def applied(self, source: str) -> str:
        """The source with this change."""
        return source[: self.start] + self.after + source[self.end :]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.start} {self.before} -> {self.after}"


def _with(node: ast.expr, **fields: object) -> str:
    """Text of an expression of which something is different."""
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return f"({ast.unparse(other)})"


def _is_words_or_path(node: ast.BinOp) -> bool:
    """Whether an arithmetic sign is none, so that another is no mistake but nonsense."""
    kinds = (ast.JoinedStr, ast.List, ast.ListComp, ast.Tuple, ast.Set, ast.Dict)
    inner = list(ast.walk(node))
    words = any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in inner)
    path = isinstance(node.op, ast.Div) and PATHS.search(ast.unparse(node))
    return words or bool(path) or any(isinstance(part, kinds) for part in inner)


def _of_constant(node: ast.Constant, parent: ast.AST) -> Iterator[str]:
    value = node.value
    if isinstance(value, bool):
        yield str(not value)
    elif isinstance(value, int | float):
        yield from (str(value + 1), f"({value - 1})")
    elif isinstance(value, str) and _is_key(node, parent):
        yield repr(value + "_")


def _is_key(node: ast.Constant, parent: ast.AST) -> bool:
    if isinstance(parent, ast.Call):
        name = ast.unparse(parent.func).rpartition(".")[2]
        return name in KEYED and node in parent.args[:2]
    if isinstance(parent, ast.Dict):
        return node in parent.keys
    return isinstance(parent, ast.Subscript | ast.Compare)


def _of_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in OPPOSITES and not (name == "sorted" and node.keywords):
        yield _with(node, func=ast.Name(OPPOSITES[name]))
    for at, keyword in enumerate(node.keywords):
        if keyword.arg and keyword.arg not in KEYWORDS_LEFT:
            yield _with(node, keywords=node.keywords[:at] + node.keywords[at + 1 :])
    for at, (left, right) in enumerate(zip(node.args, node.args[1:], strict=False)):
        if not isinstance(left, ast.Starred) and not isinstance(right, ast.Starred):
            yield _with(node, args=[*node.args[:at], right, left, *node.args[at + 2 :]])


def _of_expression(node: ast.expr, parent: ast.AST) -> Iterator[str]:
    match node:
        case ast.Constant():
            yield from _of_constant(node, parent)
        case ast.Call():
            yield from _of_call(node)
        case ast.Compare(ops=[only]):
            yield from (_with(node, ops=[other]) for other in COMPARISONS[type(only)])
        case ast.BoolOp():
            yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not()):
            yield f"({ast.unparse(node.operand)})"
        case ast.BinOp() if type(node.op) in ARITHMETIC and not _is_words_or_path(node):
            yield _with(node, op=ARITHMETIC[type(node.op)])
        case ast.IfExp():
            yield _with(node, body=node.orelse, orelse=node.body)
        case ast.Subscript(slice=ast.Slice() as part):
            yield from (
                _with(node, slice=ast.Slice(**{**vars(part), name: None}))
                for name in ("lower", "upper", "step")
                if getattr(part, name)
            )
    tests = getattr(parent, "test", None) is node or node in getattr(parent, "ifs", [])
    if tests and not isinstance(node, ast.Compare | ast.UnaryOp | ast.BoolOp):
        yield f"(not ({ast.unparse(node)}))"


def _of_statement(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield "return None"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "pass"
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign() | ast.Delete():
            yield "pass"
        case ast.Continue() | ast.Break() | ast.Return(value=None):
            yield "pass"


def _left_alone(node: ast.AST, name: str) -> bool:
    """Whether a field of a node has nothing to change."""
    if name in ("annotation", "returns", "decorator_list", "exc", "cause", "bases"):
        return True
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
        return True
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return True
    if isinstance(node, ast.keyword) and node.arg in KEYWORDS_LEFT:
        return True
    called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    return called.endswith(("Error", "warn"))


def _lines_of(node: ast.stmt) -> tuple[int, int]:
    """The lines of a statement, without those of the block that it begins."""
    body = getattr(node, "body", None) or getattr(node, "cases", None)
    if not body:
        return node.lineno, node.end_lineno or node.lineno
    inner = body[0].pattern if isinstance(body[0], ast.match_case) else body[0]
    return node.lineno, max(node.lineno, inner.lineno - 1)


class _Walk:
    """All changes in one file."""

    def __init__(self, file: str, source: str) -> None:
        self.file, self.source = file, source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def found(self, node: ast.AST, after: str, lines: tuple[int, int], inside: bool) -> Change:
        """The change of a node."""
        assert isinstance(node, ast.expr | ast.stmt)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[node.end_lineno - 1] + node.end_col_offset
        before = ast.unparse(node)
        return Change(self.file, node.lineno, start, end, before, after, *lines, inside)

    def under(self, node: ast.AST, lines: tuple[int, int], inside: bool) -> Iterator[Change]:
        """The changes of what a node consists of."""
        functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        for name, value in ast.iter_fields(node):
            if _left_alone(node, name):
                continue
            within = inside or (isinstance(node, functions) and name == "body")
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, SILENT):
                    its = _lines_of(child) if isinstance(child, ast.stmt) else lines
                    texts: Iterator[str] = iter(())
                    if isinstance(child, ast.stmt):
                        texts = _of_statement(child)
                    elif isinstance(child, ast.expr):
                        texts = _of_expression(child, node)
                    yield from (self.found(child, text, its, within) for text in texts)
                    yield from self.under(child, its, within)


def changes_of(file: str, source: str) -> list[Change]:
    """Every change that a file offers.

    Args:
        file: Its path in the repository.
        source: What it says.

    Returns:
        The changes, in the order of the file.
    """
    assert source.isascii()  # offsets are those of bytes
    return list(_Walk(file, source).under(ast.parse(source), (1, 1), inside=False))


def _can_be_read(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def draw(root: Path, count: int, seed: int) -> list[Change]:
    """Draw changes of the code outside lib/ppo, each line of code as likely as any other.

    Args:
        root: Folder of the repository.
        count: How many.
        seed: Of the draw.

    Returns:
        One change for each line drawn, by file and line.
    """
    sources: dict[str, str] = {}
    lines: dict[tuple[str, int], list[Change]] = {}
    for path in sorted((root / "recipes").rglob("*.py")):
        file = path.relative_to(root).as_posix()
        if not file.startswith("recipes/lib/ppo/"):
            sources[file] = path.read_text(encoding="utf-8")
            for change in changes_of(file, sources[file]):
                lines.setdefault((file, change.line), []).append(change)
    chance = random.Random(seed)
    drawn = []
    for file, line in chance.sample(sorted(lines), count):
        offered = [c for c in lines[file, line] if _can_be_read(c.applied(sources[file]))]
        drawn.append(chance.choice(offered))
    return sorted(drawn, key=lambda change: (change.file, change.line))
