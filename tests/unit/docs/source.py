"""The project as text: what it defines, says and uses, read without importing it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "bs_cluster"
# What ships and runs: a definition that only tests use is nobody's.
SHIPPED = ("bs_cluster", "jobs", "cluster", "benchmarks")
FOLDERS = (".", "docs", "docs/decisions", "benchmarks", "cluster", "stacks_store")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
FILES = sorted(path for folder in (*SHIPPED, "examples", "tests") for path in (ROOT / folder).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def code_in_prose(path: Path) -> tuple[str, ...]:
    """What a file's docstrings and comments set as code, between backticks."""
    has_docstring = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree(path)) if isinstance(node, has_docstring)]
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    texts += [token.string for token in tokens if token.type == tokenize.COMMENT]
    return tuple(span for text in texts for span in re.findall(r"`+([^`]+)`+", text))


def roots_imported(path: Path) -> set[str]:
    """The top-level names of everything that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        match node:
            case ast.Import(names=aliases):
                found |= {alias.name.split(".")[0] for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module.split(".")[0])
    return found


@cache
def names_read() -> set[str]:
    """Every name that what ships reads as an attribute, a string or a pattern: what makes a member used."""
    found: set[str] = set()
    for path in (path for folder in SHIPPED for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(tree(path)):
            match node:
                case ast.Attribute(attr=name, ctx=ast.Load()):
                    found.add(name)
                case ast.Constant(value=str(text)) if text.isidentifier():
                    found.add(text)
                case ast.MatchClass(cls=ast.Name(id=name), patterns=patterns, kwd_attrs=keywords):
                    found.update(keywords)
                    for matched in classes().get(name, []):
                        found.update(fields(matched)[: len(patterns)])
    return found


def fields(node: ast.ClassDef) -> list[str]:
    return [
        item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]


def own_members(node: ast.ClassDef) -> set[str]:
    """Fields, methods, class variables and attributes set on self, but those of Python's own protocols."""
    found = names_in(node.body)
    for inner in ast.walk(node):
        match inner:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.add(name)
    return {name for name in found if not name.startswith("__")}


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package; a package by its ``__init__``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def packages() -> set[str]:
    """Names of the package's direct members, ``stacks`` as ``records``."""
    return {name.split(".")[1] for name in modules() if "." in name}


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    found: dict[str, list[ast.ClassDef]] = {}
    for path in modules().values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def names_in(body: list[ast.stmt]) -> set[str]:
    """What a module or class body defines or imports."""
    found: set[str] = set()
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.Assign(targets=targets):
                found |= {inner.id for t in targets for inner in ast.walk(t) if isinstance(inner, ast.Name)}
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                found |= {(alias.asname or alias.name).split(".")[0] for alias in aliases}
    return found


@cache
def members(node: ast.ClassDef) -> set[str]:
    """Fields, methods and attributes set on self, those of the package's base classes included."""
    found = names_in(node.body)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "self":
            found.add(inner.attr)
    known = classes()
    for base in node.bases:
        name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        for parent in known.get(name, []):
            if parent is not node:
                found |= members(parent)
    return found


def resolves(dotted: str) -> bool:
    """Whether ``registry.mirror``, ``bs_cluster.store.Store.verify`` or ``Registry.sync`` names something."""
    parts = dotted.split(".")
    if parts[0] in classes():
        return len(parts) == 1 or (len(parts) == 2 and any(parts[1] in members(c) for c in classes()[parts[0]]))
    full = parts if parts[0] == "bs_cluster" else ["bs_cluster", *parts]
    known = modules()
    for length in range(len(full), 1, -1):
        if path := known.get(".".join(full[:length])):
            rest = full[length:]
            if not rest:
                return True
            return rest[0] in names_in(tree(path).body) and (len(rest) == 1 or resolves(".".join(rest)))
    return full == ["bs_cluster"]
