"""What holds of the source as a whole: contracts name every package, imports are declared, definitions are used."""

import ast
import configparser
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from source import PACKAGE, ROOT, SHIPPED, modules, packages, tree

# What stands outside a contract, and why it may.
OWNERS = {
    "mlflow": {"registry"},  # serving's one file that MLflow itself runs is named in the contract
    "deepspeed": {"training"},
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


def test_every_third_party_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["embedded"]]
    declared = {re.split(r"[\[<>=~! ]", line)[0].lower().replace("_", "-") for line in wanted}
    distributions = packages_distributions()
    undeclared = set()
    for path in modules().values():
        for node in ast.walk(tree(path)):
            match node:
                case ast.Import(names=aliases):
                    roots = {alias.name.split(".")[0] for alias in aliases}
                case ast.ImportFrom(module=str(module), level=0):
                    roots = {module.split(".")[0]}
                case _:
                    continue
            for root in roots - sys.stdlib_module_names - {"bs_cluster"}:
                names = {name.lower().replace("_", "-") for name in distributions.get(root, [root])}
                if not names & declared:
                    undeclared.add(f"{root} in {path.relative_to(PACKAGE)}")
    assert undeclared == set()


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
