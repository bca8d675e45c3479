"""What pages and docstrings say there is, is there: fields, names, paths, links, targets, options."""

import argparse
import ast
import itertools
import re
from pathlib import Path

import pytest
import source
from source import FILES, PAGES, ROOT, classes, code_in_prose, members, modules, packages, resolves, tree

from bs_cluster.cli.main import command_line
from bs_cluster.config.schema import CampaignConfig

# Files that a run writes, or that the reader has: named in pages, not in the repository.
WRITTEN = re.compile(
    r"(adapter_config|manifest|report|evaluation|bundle|router|campaign|history|outcomes|results)\.(json|jsonl|md)$|^/|\*|…|<"
)
SCHEMA = CampaignConfig.model_json_schema()
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
pages = pytest.mark.parametrize("page", PAGES, ids=IDS)


def code_spans(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return [span.strip() for span in re.findall(r"`([^`\n]+)`", text)]


def code_of(page: Path) -> str:
    """Everything set as code: spans, fenced and indented blocks."""
    text = page.read_text()
    blocks = re.findall(r"^```.*?^```", text, flags=re.M | re.S) + re.findall(r"^(?: {4}|\t).*$", text, flags=re.M)
    return "\n".join([*blocks, *code_spans(page)])


def documented_fields(docstring: str) -> list[str]:
    """Names in double backticks that a sentence begins with to say what they are or hold."""
    name = r"``([a-z][a-z_]*)``"
    verb = r"(?:is|are|holds|maps|covers|counts|names|says|gives|grows|begins)\b"
    text = " ".join(docstring.split())
    return re.findall(rf"(?:^|[.;] ){name}(?: \([^)]*\))? {verb}", text)


def test_every_field_that_a_record_documents_is_there():
    missing = [
        f"{node.name} documents {field!r}"
        for nodes in classes().values()
        for node in nodes
        if any(isinstance(item, ast.AnnAssign) for item in node.body)
        for field in documented_fields(ast.get_docstring(node) or "")
        if field not in members(node)
    ]
    assert missing == []


def config_key(dotted: str) -> bool:
    """Whether ``training.steps`` or ``domains.<name>.steps`` is a setting."""
    node, parts = SCHEMA, dotted.split(".")
    for part in parts:
        options = [node, *node.get("anyOf", ())]
        options = [SCHEMA["$defs"][o["$ref"].split("/")[-1]] if "$ref" in o else o for o in options]
        items = [o["items"] for o in options if "items" in o]
        if items:  # a list of named things: any name will do
            node = {"$ref": items[0]["$ref"]} if "$ref" in items[0] else items[0]
            continue
        found = [o["properties"][part] for o in options if part in o.get("properties", {})]
        if not found:
            return any("additionalProperties" in o and o["additionalProperties"] for o in options)
        node = found[0]
    return True


FILE_ENDINGS = ["py", "md", "yaml", "json", "jsonl", "sh", "db", "toml", "txt", "log", "safetensors", "parquet", "png"]


def unresolved(spans: list[str] | tuple[str, ...]) -> list[str]:
    """Dotted names that begin with something of ours and name nothing."""
    sections = set(CampaignConfig.model_fields)
    wrong = []
    for span in spans:
        for dotted, call in re.findall(r"(?<![\w./:\"'-])([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?![\w/-])(\(?)", span):
            first, last = dotted.split(".")[0], dotted.split(".")[-1]
            if last in FILE_ENDINGS:
                continue
            if call and any(last in members(node) for nodes in classes().values() for node in nodes):
                continue  # a method of what a variable holds
            known = first in packages() | {"bs_cluster"} | sections or first in classes()
            if known and not resolves(dotted) and not config_key(dotted):
                wrong.append(dotted)
    return wrong


@pages
def test_every_dotted_name_of_a_page_resolves(page):
    assert unresolved(code_spans(page)) == []


def test_every_dotted_name_of_a_docstring_or_comment_resolves():
    wrong = {str(path.relative_to(ROOT)): unresolved(code_in_prose(path)) for path in FILES}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_every_path_in_a_docstring_or_comment_exists():
    places = (ROOT, ROOT / "bs_cluster", ROOT / "tests/unit")
    missing = []
    for path in FILES:
        for span in code_in_prose(path):
            if not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)+\.(?:py|md|yaml|sbatch|toml)", span) or WRITTEN.search(span):
                continue
            if not any((place / span).exists() for place in (*places, path.parent)):
                missing.append(f"{path.relative_to(ROOT)}: {span}")
    assert missing == []


@pages
def test_every_path_exists(page):
    """Paths in code: from the root, from the package, from the page's folder or from the unit tests."""
    places = (ROOT, ROOT / "bs_cluster", page.parent, ROOT / "tests/unit", ROOT / "cluster", ROOT / "cluster/slurm")
    spans = [
        span for span in code_spans(page) if re.fullmatch(r"[\w.-]+(?:/[\w.-]+)*\.(?:py|md|toml|sbatch|txt)", span)
    ]
    spans += re.findall(
        r"(?:jobs|cluster|bs_cluster|benchmarks|examples|tests|docs)/[\w./-]*\.(?:py|yaml|md|sbatch)", code_of(page)
    )
    missing = [
        span
        for span in spans
        if not WRITTEN.search(span)
        and not any((place / span).exists() for place in places)
        and not any(str(path).endswith(f"/{span}") for path in modules().values())
    ]
    assert missing == []


def anchors(page: Path) -> set[str]:
    return {slug(line) for line in re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)}


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pages
def test_every_relative_link_and_image_is_there(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pages
def test_every_make_target_is_there(page):
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"(?:^|[`\s])make ([a-z]+)\b", code_of(page), flags=re.M))
    assert named - targets == set()


def options_of(words: list[str]) -> set[str]:
    """The options of the command that ``words`` begin; the words that are no verb or action of it are its arguments."""
    parser = command_line()
    for word in words:
        below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if below and word not in below[0]:
            raise AssertionError(f"{word} is none of {', '.join(below[0])}")
        parser = below[0][word] if below else parser
    return set(parser._option_string_actions)


@pages
def test_every_command_is_there_with_its_options(page):
    for line in re.findall(r"(?m)(?:^|[`\s/])bs_cluster ([a-z][^\n`]*)", code_of(page)):
        words, options = line.split(), set(re.findall(r"(?<!\w)(--[a-z][\w-]+)", line))
        assert options - options_of(list(itertools.takewhile(str.isalpha, words))) == set(), line


@pages
def test_every_program_and_its_options_are_there(page):
    """``python jobs/…``, ``cluster/…``, ``examples/…``, ``-m <module of ours>``, up to the line's end or a comment."""
    called = re.findall(
        r"((?<![\w/])(?:jobs|cluster|examples)/\w+\.py|-m (?:benchmarks|bs_cluster)[\w.]*)([^\n`#]*)", code_of(page)
    )
    for program, options in called:
        path = ROOT / program.removeprefix("-m ").removesuffix(".py").replace(".", "/")
        file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert file.exists(), program
        text = file.read_text()
        verb = re.search(r'main\(\["(\w+)"', text)
        known = options_of([verb[1]]) if verb else set(re.findall(r'"(--[\w-]+)"', text))
        assert set(re.findall(r"(?<!\w)(--[a-z][\w-]+)", options)) - known == set(), program


@pages
def test_every_test_that_a_page_names_is_there(page):
    """``…`` stands for what the name goes on with."""
    defined = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    spans = [span for span in code_spans(page) if re.fullmatch(r"(?:test_|…)\w+…?", span)]
    missing = [span for span in spans if not any(re.fullmatch(span.replace("…", r"\w*"), name) for name in defined)]
    assert missing == []


def test_the_checks_here_find_what_they_are_for():
    assert documented_fields("What one serves. ``gates`` is how logits become weights, of which ``x``.") == ["gates"]
    assert resolves("bs_cluster.registry.mirror.Registry.sync")
    assert not resolves("bs_cluster.registry.mirror.Registry.gates")
    assert not resolves("registry.register")
    assert unresolved(["see ``Store.verify`` and"]) == []
    assert unresolved(["Store.verified", "training.stepz", "records.StackManifest.colour"]) == [
        "Store.verified",
        "training.stepz",
        "records.StackManifest.colour",
    ]
    assert config_key("training.steps")
    assert config_key("domains.legal.steps")
    assert not config_key("training.step")
    assert slug("Rebuild MLflow from the store") == "rebuild-mlflow-from-the-store"
    assert source.tree(ROOT / "bs_cluster/records.py")
