"""The walk: every workflow of a module, and what it calls of the same module, looked at statement by statement.

Activities are not looked at, wherever they stand: their results are recorded. What is imported from other modules is
not followed. Where the text does not say what a name is, nothing is found: a finding should be one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edda.cli.lint.names import Function, Imports, bound_in
from edda.cli.lint.rules import AS_COMPLETED, ENVIRONMENT, RULES, SET_ORDER, Rule
from edda.errors import ConfigurationError

_ALLOW = re.compile(r"#\s*edda:\s*allow\b")

#: Calls whose first argument is gone through in its order.
_ORDERED = frozenset({"list", "tuple", "enumerate", "iter", "map", "filter", "zip", "gather", "join"})
#: Calls whose result is the same in whatever order.
_UNORDERED = frozenset({"sorted", "sum", "min", "max", "any", "all", "len", "set", "frozenset"})

#: asyncio.sleep(0) lets other tasks go first, and is no time.
_HARMLESS = frozenset({("asyncio.sleep", "0")})

_SET_METHODS = frozenset({"union", "intersection", "difference", "symmetric_difference"})


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place. ``workflow`` is whose code it is, or that calls it."""

    file: str
    line: int
    column: int
    code: str
    what: str
    workflow: str
    why: str
    instead: str


def files_of(paths: Sequence[str], here: Path) -> list[Path]:
    """Python files of files, folders and module names, each once.

    Raises ConfigurationError for what is none of these.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given)
        as_module = here / given.replace(".", "/")
        if not path.exists():
            path = as_module if as_module.is_dir() else as_module.with_suffix(".py")
        if path.is_dir():
            inside = (file for file in sorted(path.rglob("*.py")) if not _hidden(file.relative_to(path)))
            found.update(dict.fromkeys(inside))
        elif path.is_file():
            found[path] = None
        else:
            msg = f"{given!r} is no file, no folder and no module here; try for example: edda lint src shop.workflows"
            raise ConfigurationError(msg)
    return list(found)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part in {"__pycache__", "node_modules"} for part in path.parts)


def check_file(path: Path) -> list[Finding]:
    """Findings of one file, by line.

    Raises ConfigurationError for one that is no Python.
    """
    try:
        return check_source(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read as Python: {error}") from None


def check_source(source: str, file: str) -> list[Finding]:
    """Findings in a text."""
    module = _Module(ast.parse(source, file), source.splitlines(), file)
    return sorted(
        {finding for name, function in module.workflows() for finding in module.look(name, function)}
    )


class _Module:
    def __init__(self, tree: ast.Module, lines: list[str], file: str) -> None:
        self.tree, self.lines, self.file = tree, lines, file
        self.imports = Imports(tree)
        self.helpers = {
            node.name: node
            for node in tree.body
            if isinstance(node, Function) and not self._is_decorated(node, "activity")
        }

    def workflows(self) -> Iterator[tuple[str, Function]]:
        """Every function that is decorated as one, wherever it stands."""
        for node in ast.walk(self.tree):
            if isinstance(node, Function) and self._is_decorated(node, "workflow"):
                yield node.name, node

    def _is_decorated(self, function: Function, word: str) -> bool:
        for decorator in function.decorator_list:
            name = decorator.func if isinstance(decorator, ast.Call) else decorator
            full = self.imports.full_name(name, frozenset())
            if full is not None and full.startswith("edda.") and full.endswith(f".{word}"):
                return True
        return False

    def look(self, workflow: str, function: Function) -> Iterator[Finding]:
        """A workflow's code, and that of the module's functions which it calls, each once."""
        seen: set[str] = {function.name}
        todo: list[tuple[Function, frozenset[str]]] = [(function, frozenset())]
        while todo:
            current, outer = todo.pop()
            taken = outer | bound_in(current)
            for node, rule in self._offences(current, taken):
                if not self._allowed(node):
                    what = ast.unparse(node).partition("\n")[0]
                    yield Finding(
                        self.file,
                        node.lineno,
                        node.col_offset + 1,
                        rule.code,
                        what if len(what) <= 60 else f"{what[:57]}...",
                        workflow,
                        rule.why,
                        rule.instead,
                    )
            for name in _called(current):
                if name in self.helpers and name not in seen and name not in taken:
                    seen.add(name)
                    todo.append((self.helpers[name], frozenset()))

    def _allowed(self, node: ast.expr) -> bool:
        last = node.end_lineno or node.lineno
        return any(_ALLOW.search(line) for line in self.lines[node.lineno - 1 : last])

    def _offences(self, function: Function, taken: frozenset[str]) -> Iterator[tuple[ast.expr, Rule]]:
        sets = _sets(function)
        told: set[ast.AST] = set()  # inside what is found already, or where no order shows
        for node in self._own(function):
            if node in told:
                continue
            if isinstance(node, ast.Call):
                rule = self._rule_of_call(node, taken)
                if rule is not None:
                    told.update(ast.walk(node.func))
                    yield node, rule
                if isinstance(node.func, ast.Name) and node.func.id in _UNORDERED:
                    told.update(node.args)
            elif (
                isinstance(node, ast.Attribute | ast.Name)
                and self.imports.full_name(node, taken) in ENVIRONMENT.names
            ):
                told.update(ast.walk(node))
                yield node, ENVIRONMENT
            yield from ((one, SET_ORDER) for one in _gone_through(node) if _is_set(one, sets))

    def _rule_of_call(self, call: ast.Call, taken: frozenset[str]) -> Rule | None:
        name = self.imports.full_name(call.func, taken)
        if name is None or (name, _only_argument(call)) in _HARMLESS:
            return None
        if name == "random.Random" and call.args:
            return None  # its seed is said
        if name in AS_COMPLETED.names:
            return None if _makes_tasks(call) else AS_COMPLETED
        return _rule_for(name)

    def _own(self, function: Function) -> Iterator[ast.AST]:
        """The nodes of a body, those of functions inside it too, but for activities and decorators."""
        todo: list[ast.AST] = list(function.body)
        while todo:
            node = todo.pop()
            yield node
            if isinstance(node, Function):
                if not self._is_decorated(node, "activity"):
                    todo.extend(node.body)
            else:
                todo.extend(ast.iter_child_nodes(node))


def _rule_for(name: str) -> Rule | None:
    for rule in RULES:
        for one in rule.names:
            if name == one or (one.endswith(".") and name.startswith(one)) or name.startswith(f"{one}."):
                return rule
    return None


def _only_argument(call: ast.Call) -> str:
    return ast.unparse(call.args[0]) if len(call.args) == 1 and not call.keywords else ""


def _called(function: Function) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def _makes_tasks(call: ast.Call) -> bool:
    """Whether what is given is made of tasks, or is a name, of which the text does not say what it holds."""
    given = call.args[0] if call.args else None
    if isinstance(given, ast.ListComp | ast.GeneratorExp):
        items: Iterable[ast.expr] = [given.elt]
    elif isinstance(given, ast.List | ast.Tuple):
        items = given.elts
    else:
        return True
    return not any(isinstance(item, ast.Call) and not _is_task(item) for item in items)


def _is_task(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in {"create_task", "ensure_future"}


# ---------------------------------------------------------------------------------------------- sets


def _sets(function: Function) -> frozenset[str]:
    """Names that are a set wherever the function binds them."""
    values: dict[str, list[bool]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        values.setdefault(name.id, []).append(
                            name is target and _is_set(node.value, frozenset())
                        )
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            annotated = ast.unparse(node.annotation).partition("[")[0] in {"set", "frozenset"}
            values.setdefault(node.target.id, []).append(
                annotated or (node.value is not None and _is_set(node.value, frozenset()))
            )
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            values.setdefault(node.id, [])
    return frozenset(name for name, found in values.items() if found and all(found))


def _is_set(node: ast.expr, sets: frozenset[str]) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return not _holds_tasks(node)
    if isinstance(node, ast.Name):
        return node.id in sets
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor):
        return _is_set(node.left, sets) or _is_set(node.right, sets)
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name):
            return node.func.id in {"set", "frozenset"}
        if isinstance(node.func, ast.Attribute):
            return node.func.attr in _SET_METHODS and _is_set(node.func.value, sets)
    return False


def _holds_tasks(node: ast.Set | ast.SetComp) -> bool:
    """Tasks of a workflow have an order of their own in a set, the same in each replay."""
    items = [node.elt] if isinstance(node, ast.SetComp) else node.elts
    return all(isinstance(item, ast.Call) and _is_task(item) for item in items)


def _gone_through(node: ast.AST) -> Iterator[ast.expr]:
    """What is iterated here, where the order shows."""
    if isinstance(node, ast.For | ast.AsyncFor):
        yield node.iter
    elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.DictComp):
        for generator in node.generators:
            yield generator.iter
    elif isinstance(node, ast.Starred):
        yield node.value
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _ORDERED:
            yield from node.args
        elif name == "pop" and isinstance(node.func, ast.Attribute) and not node.args:
            yield node.func.value
