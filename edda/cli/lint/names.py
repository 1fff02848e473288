"""What a name stands for in a module, as far as its text says: imports, and names that something else has taken."""

from __future__ import annotations

import ast

#: Built-in functions that the rules name.
_BUILTINS = frozenset({"open", "input"})

#: The scopes whose body has names of its own.
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Imports:
    """Names that imports bind, anywhere in a module or function, to what they import."""

    def __init__(self, tree: ast.AST) -> None:
        self.known: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.asname is not None:
                        self.known[alias.asname] = alias.name
                    else:
                        first = alias.name.partition(".")[0]
                        self.known[first] = first
            elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
                for alias in node.names:
                    self.known[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def full_name(self, node: ast.expr, taken: frozenset[str]) -> str | None:
        """``datetime.datetime.now`` for ``dt.now``, after ``from datetime import datetime as dt``; else None."""
        rest: list[str] = []
        while isinstance(node, ast.Attribute):
            rest.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id in taken:
            return None
        if node.id in self.known:
            first = self.known[node.id]
        elif node.id in _BUILTINS and not rest:
            first = node.id
        else:
            return None
        return ".".join([first, *reversed(rest)])


def bound_in(function: Function) -> frozenset[str]:
    """Names that a function binds itself: what they are is not said by the module's imports."""
    arguments = function.args
    names = {
        argument.arg
        for argument in (
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            *filter(None, (arguments.vararg, arguments.kwarg)),
        )
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, Function) and node is not function:
            names.add(node.name)
    return frozenset(names)
