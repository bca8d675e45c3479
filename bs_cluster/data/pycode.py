"""Code rows: documented Python functions, asked for by signature and docstring and answered by their body."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

Pair = tuple[str, str]
Scope = ast.Module | ast.ClassDef

# Standard library files with many short documented functions, none of them removed by a later Python so far.
STDLIB_FILES = (
    "ast.py", "base64.py", "bdb.py", "bisect.py", "bz2.py", "calendar.py", "codecs.py", "collections/__init__.py",
    "configparser.py", "contextlib.py", "dataclasses.py", "difflib.py", "dis.py", "email/message.py",
    "email/quoprimime.py", "email/utils.py", "enum.py", "fileinput.py", "fnmatch.py", "fractions.py", "ftplib.py",
    "functools.py", "genericpath.py", "glob.py", "graphlib.py", "gzip.py", "heapq.py", "hmac.py", "html/parser.py",
    "http/cookiejar.py", "http/cookies.py", "http/server.py", "imaplib.py", "inspect.py", "ipaddress.py",
    "linecache.py", "logging/__init__.py", "logging/handlers.py", "lzma.py", "mailbox.py", "mimetypes.py",
    "multiprocessing/context.py", "multiprocessing/process.py", "ntpath.py", "numbers.py", "operator.py",
    "optparse.py", "os.py", "pickletools.py", "poplib.py", "posixpath.py", "pprint.py", "queue.py", "quopri.py",
    "random.py", "sched.py", "secrets.py", "selectors.py", "shlex.py", "shutil.py", "smtplib.py", "socket.py",
    "socketserver.py", "stat.py", "statistics.py", "string.py", "symtable.py", "tarfile.py", "tempfile.py",
    "textwrap.py", "threading.py", "tokenize.py", "traceback.py", "turtle.py", "typing.py", "urllib/parse.py",
    "urllib/request.py", "urllib/robotparser.py", "weakref.py", "wsgiref/handlers.py", "wsgiref/headers.py",
    "xml/dom/minidom.py", "xml/etree/ElementTree.py", "xml/sax/saxutils.py", "xml/sax/xmlreader.py",
)  # fmt: skip


def stdlib_pairs() -> list[Pair]:
    """Functions and methods of the running Python's library. Other Python versions may give other rows.

    Sources are parsed, not imported: no module's side effects, and far quicker.
    """
    root = Path(sysconfig.get_path("stdlib"))
    present = [path for name in STDLIB_FILES if (path := root / name).exists()]
    return [pair for path in present for pair in module_pairs(path.read_text(encoding="utf-8"))]


def module_pairs(source: str) -> Iterator[Pair]:
    """A pair for each public, documented function of the module and each such method of its public classes."""
    module = ast.parse(source)
    yield from _pairs(module, "")
    for node in module.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _pairs(node, f"{node.name}.")


def _pairs(scope: Scope, prefix: str) -> Iterator[Pair]:
    for node in scope.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            task = _task(ast.get_docstring(node))
            node.body = node.body[1:]
            if task and not _is_stub(node.body):
                kind = "method" if prefix else "function"
                returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
                signature = f"{prefix}{node.name}({ast.unparse(node.args)}){returns}"
                yield f"Write a Python {kind} `{signature}`: {task}", ast.unparse(node)


def _task(docstring: str | None) -> str:
    """What a docstring asks for: its first paragraph, up to where examples begin, on one line."""
    text = (docstring or "").partition(">>>")[0].strip()
    return " ".join(text.partition("\n\n")[0].split())


def _is_stub(body: list[ast.stmt]) -> bool:
    """A body with nothing to learn: empty, ``pass``, ``...`` or ``raise NotImplementedError``."""
    return not body or (len(body) == 1 and isinstance(body[0], ast.Pass | ast.Raise | ast.Expr))
