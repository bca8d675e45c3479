"""What holds of the source as a whole: contracts name every package, imports are declared, definitions are used."""

import ast
import configparser
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from source import FILES, ROOT, SHIPPED, modules, names_read, own_members, packages, roots_imported, tree

# What stands outside a contract, and why it may.
OWNERS = {
    "mlflow": {"registry"},  # serving's one file that MLflow itself runs is named in the contract
    "deepspeed": {"training"},
    "ray": {"campaign", "training", "coordinator", "sweep", "waiting", "gauges", "doctor", "replicas"},
}


def contracts() -> dict[str, configparser.SectionProxy]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    return {name: parser[name] for name in parser.sections() if ":contract:" in name}


def listed(text: str) -> set[str]:
    return {part.strip().removeprefix("bs_cluster.") for part in re.split(r"[\n|]", text) if part.strip()}


def test_the_layers_name_every_package():
    assert listed(contracts()["importlinter:contract:layers"]["layers"]) == packages()


def test_a_library_that_one_package_owns_is_forbidden_to_all_others():
    for library, owners in OWNERS.items():
        section = contracts()[f"importlinter:contract:{library}"]
        assert listed(section["forbidden_modules"]) == {library}
        assert listed(section["source_modules"]) == packages() - owners, library
        imported = {name.split(".")[1] for name, path in modules().items() if library in roots_imported(path)}
        assert imported >= owners, f"{owners - imported} need no leave to import {library}"


# Who may import what: the package and its jobs what a user installs, tests and benchmarks the tools for developers too.
EXTRAS = {
    "bs_cluster": ("cluster", "embedded", "evaluate"),
    "bs_cluster/stacks": ("stacks",),  # what an exported adapter is loaded with
    "jobs": ("cluster", "embedded"),
    "cluster": ("cluster", "embedded"),
    "benchmarks": ("cluster", "embedded", "dev"),
    "examples": ("cluster", "embedded"),
    "tests": ("cluster", "embedded", "evaluate", "dev"),
}
# Modules that are ours wherever they lie: pytest's path holds tests/, and helpers stand beside their tests.
OURS = {"bs_cluster", "benchmarks", "chaos", "tests", "unit"} | {path.stem for path in FILES}


def declared(extras: tuple[str, ...]) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return {distribution(line) for group in groups for line in group}


def distribution(requirement: str) -> str:
    """``ray[train]>=2`` -> ``ray``, in the one spelling that index and metadata are compared in."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~!; ]", requirement)[0].strip()).lower()


@cache
def distributions() -> dict[str, set[str]]:
    return {root: {distribution(name) for name in names} for root, names in packages_distributions().items()}


def test_a_package_is_declared_once_and_pinned_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = [distribution(line) for group in groups for line in group]
    assert {name for name in names if names.count(name) > 1} == set()
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [distribution(line) for line in lines if re.fullmatch(r"[\w.-]+==[\w.+!-]+", line)]
    assert {name for name in pinned if pinned.count(name) > 1} == set()
    assert set(names) - set(pinned) == set()


def undeclared(path: Path, allowed: set[str]) -> set[str]:
    roots = roots_imported(path) - sys.stdlib_module_names - OURS
    return {root for root in roots if not distributions().get(root, {distribution(root)}) & allowed}


@pytest.mark.parametrize("folder", EXTRAS)
def test_every_import_is_declared(folder):
    allowed = declared(EXTRAS[folder])
    found = {str(path.relative_to(ROOT)): undeclared(path, allowed) for path in (ROOT / folder).rglob("*.py")}
    assert {path: roots for path, roots in found.items() if roots} == {}


def test_every_definition_is_used_by_what_ships():
    """A public function or class whose name stands nowhere else in what ships is there for tests alone."""
    words: dict[str, int] = {}
    for folder in SHIPPED:
        for path in (ROOT / folder).rglob("*.py"):
            code = re.sub(r'"""[\s\S]*?"""', "", path.read_text())
            for word in re.findall(r"\w+", code):
                words[word] = words.get(word, 0) + 1
    unused = []
    for module, path in modules().items():
        for node in tree(path).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if words.get(node.name, 0) < 2 and not node.decorator_list:  # a decorator registers: a use of its own
                unused.append(f"{module}: {node.name}")
    assert unused == []


# Called by a library that we plug into, never by us.
HOOKS = {
    "model_config": "pydantic",
    "yaml_implicit_resolvers": "PyYAML",
    "handle_exit": "uvicorn",
    "should_exit": "uvicorn",
    "force_exit": "uvicorn",
    "check_health": "Ray Serve",
    "load_context": "MLflow",
    "predict": "MLflow",
    "on_log": "transformers",
    "loglikelihood_rolling": "lm-eval",
    "_loglikelihood_tokens": "lm-eval",
    "prefix_token_id": "lm-eval",
    "tokenizer_name": "lm-eval",
    "adapter_layer_names": "PEFT",
    "enable_adapters": "PEFT",
    "merged_adapters": "PEFT",
    "prefix": "PEFT",
    "tuner_layer_cls": "PEFT",
    "target_module_mapping": "PEFT",
    "active_adapter": "PEFT",
    "_pre_injection_hook": "PEFT",
    "_create_and_replace": "PEFT",
}
# For people: read in report.json, or called by hand as stacks_store/README.md and docs/operations.md say.
FOR_PEOPLE = {
    ("RouterReport", "all_on_regret"),
    ("RouterReport", "base_regret"),
    ("SweepReport", "reused"),
    ("Report", "isolated_drift_rows"),
    ("Report", "claim_overlap"),
    ("Store", "materialize"),
    ("Store", "commit_stack"),
}


def unread_members() -> set[tuple[str, str]]:
    """(class, member) of the package that nothing which ships reads by that name."""
    return {
        (node.name, name)
        for path in modules().values()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
        for name in own_members(node)
        if name not in names_read()
    }


def test_every_member_of_a_class_is_used_by_what_ships():
    unread = unread_members()
    assert {(owner, name) for owner, name in unread if name not in HOOKS} - FOR_PEOPLE == set()
    assert unread >= FOR_PEOPLE, "these are used by now, or gone"
    assert set(HOOKS) <= {name for _, name in unread}, "these are used by now, or gone"
