"""Where rows come from: one section a kind, told apart by ``kind``."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

from pydantic import Field

from bs_cluster.config import plugins
from bs_cluster.config.section import Rows, Section
from bs_cluster.errors import ConfigError

# The built-in domains (``bs_cluster.data.builtin``) and row formats (``bs_cluster.data.formats``) by name. They are
# implemented above this package; a test holds the names equal.
EMBEDDED_DOMAINS = ("chat", "code", "math", "medical", "reasoning")
# Kinds of rows that no built-in domain owns (``bs_cluster.data.mixed`` and ``foreign``).
EMBEDDED_MIXED = ("doses", "values", "chains", "chatty", "codings")
EMBEDDED_FOREIGN = ("european", "licences", "characters", "ciphers", "scripts", "readmes", "manual", "games")
EMBEDDED_PREFERENCES = ("replies",)  # pairs of answers, for dpo
EMBEDDED_ROWS = (*EMBEDDED_DOMAINS, *EMBEDDED_MIXED, *EMBEDDED_FOREIGN)
BUILT_IN_FORMATS = (
    "alpaca", "daring_anteater", "dolly", "gsm8k", "medical_reasoning", "medqa", "messages", "nemotron_v2",
    "numina_cot", "opencodereasoning", "openmath", "openthoughts", "prompt_completion", "pubmedqa", "sky_t1",
    "ultrafeedback_sft",
)  # fmt: skip


# How an answer can be judged (``bs_cluster.data.verify``), beside ``package.module:function``.
BUILT_IN_VERIFIERS = ("calls", "exact", "none", "number", "tests")


def format_names() -> tuple[str, ...]:
    """Every row format there is, installed packages' own included."""
    return (*BUILT_IN_FORMATS, *plugins.found(plugins.FORMATS))


class SourceSection(Section):
    """What every source has, beside its ``kind: Literal[...]``, the word that stands for it in a config."""

    take: Rows | None = Field(default=None, description="Rows to read at most; null reads all.")
    where: dict[str, str] = Field(
        default={}, description="Keep rows whose columns equal these texts, as in {language: en}."
    )
    verify: str | None = Field(
        default=None,
        description="What makes a generated answer right: exact (the completion's words), number (its last number), "
        "calls (its function calls), tests (unit tests, run in a sandbox), none, or a function of prompt, completion "
        "and answer as package.module:function. null: as built-in and generated rows say themselves, else none.",
    )
    tests: str | None = Field(
        default=None,
        description="The column with a row's unit tests for verify: tests, a program or a list of its lines.",
    )

    @classmethod
    def kind_name(cls) -> str:
        return get_args(cls.model_fields["kind"].annotation)[0]

    @property
    def label(self) -> str:
        """How messages name the source: its kind and what it reads."""
        return self.kind_name()

    @property
    def row_format(self) -> str:
        """The name of the format that its raw rows are in."""
        return getattr(self, "format", "prompt_completion")


class EmbeddedSource(SourceSection):
    """Rows of a built-in domain, from installed packages."""

    kind: Literal["embedded"]
    name: str = Field(
        description="A built-in domain: chat, code, math, medical, reasoning; a kind of rows that none of them owns; "
        "or replies, pairs of answers for dpo."
    )

    @property
    def label(self) -> str:
        return f"embedded {self.name}"


class FileSource(SourceSection):
    path: str = Field(min_length=1, description="A file or a glob. Every node that loads data must see it.")
    format: str = Field(default="prompt_completion", description="How a raw row becomes prompt and completion.")

    @property
    def label(self) -> str:
        return f"{self.kind_name()} {self.path}"

    def files(self) -> list[str]:
        """The regular files that ``path`` names on this machine, sorted."""
        return sorted(path for path in glob.glob(self.path, recursive=True) if os.path.isfile(path))


class JsonlSource(FileSource):
    """Text files with a JSON object on each line, UTF-8, plain or gzipped."""

    kind: Literal["jsonl"]


class ParquetSource(FileSource):
    """Parquet files, a row a row."""

    kind: Literal["parquet"]


class HubSource(SourceSection):
    """A data set of the Hugging Face Hub, or a local folder in the same layout."""

    kind: Literal["hub"]
    name: str = Field(min_length=1, description="The data set, as in openai/gsm8k.")
    config: str | None = Field(default=None, description="Its configuration, where it has several.")
    split: str = Field(default="train", description="The split to read. Never another one in its place.")
    format: str = Field(default="prompt_completion", description="How a raw row becomes prompt and completion.")

    @property
    def label(self) -> str:
        return " ".join(part for part in ("hub", self.name, self.config, self.split) if part)


class ReasoningGymSource(SourceSection):
    """Rows that reasoning-gym generates, each with a computed answer."""

    kind: Literal["reasoning_gym"]
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Task names, as in [chain_sum, gcd]; they take turns."
    )
    settings: dict[str, dict[str, bool | int | float | str]] = Field(
        default={}, description="By task, the generator's own settings, as in {chain_sum: {max_terms: 2}}."
    )

    @property
    def label(self) -> str:
        return f"reasoning_gym {','.join(self.tasks)}"


BUILT_IN: tuple[type[SourceSection], ...] = (EmbeddedSource, HubSource, JsonlSource, ParquetSource, ReasoningGymSource)


def _kinds() -> Iterator[tuple[str, type[SourceSection]]]:
    for section in BUILT_IN:
        yield section.kind_name(), section
    for name in plugins.found(plugins.SOURCES):
        try:
            section: Any = plugins.load(plugins.SOURCES, name)
            if not (isinstance(section, type) and issubclass(section, SourceSection)):
                raise ConfigError([f"{plugins.SOURCES}: {name} is {section!r}; a subclass of SourceSection is wanted"])
        except ConfigError as error:
            BROKEN[name] = error.problems[0]  # told when a config asks for it: other campaigns do not need it
            continue
        yield name, section


BROKEN: dict[str, str] = {}
SOURCE_KINDS: dict[str, type[SourceSection]] = dict(_kinds())

if TYPE_CHECKING:
    Source = EmbeddedSource | HubSource | JsonlSource | ParquetSource | ReasoningGymSource
else:
    Source = Annotated[Union[tuple(SOURCE_KINDS.values())], Field(discriminator="kind")]  # noqa: UP007
