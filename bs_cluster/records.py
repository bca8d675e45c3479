"""What crosses a process or a disk: typed, frozen records that round-trip through a dict.

``Record.to_dict`` gives JSON-ready values; ``Record.from_dict`` refuses unknown and missing keys, so a
record written by another version fails loudly instead of losing a field.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from bs_cluster.errors import IntegrityError, NotInStoreError

SCHEMA_VERSION = 1


def canonical_json(value: Any) -> bytes:
    """Bytes that depend on the value alone: sorted keys, no spaces, no NaN. What digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Record:
    """Mixin for frozen dataclasses: ``to_dict`` and a strict ``from_dict``."""

    def to_dict(self) -> dict[str, Any]:
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        hints = _hints(cls)
        names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if set(data) != names:
            raise IntegrityError(
                f"{cls.__name__} wants the keys {sorted(names)}, got {sorted(data)}; "
                "it was written by another version of bs_cluster"
            )
        return cls(**{name: _typed(hints[name], data[name]) for name in names})

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of this record."""
        return sha256_hex(canonical_json(self.to_dict()))


@functools.cache
def _hints(kind: type[Record]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


# What JSON gives for a hint; a float may be written without its point.
_JSON_TYPES: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (float, int),
    str: (str,),
    tuple: (list, tuple),
    dict: (dict,),
}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _typed(hint: Any, value: Any) -> Any:
    """``value`` as ``hint`` says. Raises IntegrityError where it is of another type, which JSON can hold as well."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    _check_type(hint, origin or hint, value)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _typed(next(a for a in args if a is not type(None)), value)
    if isinstance(hint, type) and issubclass(hint, Record):
        if not isinstance(value, Mapping):
            raise IntegrityError(f"{str(value)[:40]!r} stands where a {hint.__name__} is wanted")
        return hint.from_dict(value)
    if origin is tuple:
        return tuple(_typed(args[0], item) for item in value)
    if origin is dict:
        return {key: _typed(args[1], item) for key, item in value.items()}
    return value


def _check_type(hint: Any, kind: Any, value: Any) -> None:
    wanted = _JSON_TYPES.get(kind)
    if wanted is not None and (not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool)):
        raise IntegrityError(f"{str(value)[:40]!r} stands where {wanted[0].__name__} is wanted")


@dataclass(frozen=True, order=True)
class StackId(Record):
    """One stack: the adapter that ``round`` (from 1) of ``domain`` trained."""

    domain: str
    round: int

    @property
    def name(self) -> str:
        """Adapter name and file-safe label, ``chat_r1``."""
        return f"{self.domain}_r{self.round}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """The stack that ``name`` names, ``chat_r1``. Raises ValueError for anything else."""
        domain, found, number = name.rpartition("_r")
        if not (found and domain and number.isascii() and number.isdecimal() and int(number) > 0):
            raise ValueError(f"{name!r} names no stack; a name is <domain>_r<round>, as in chat_r1")
        return cls(domain, int(number))


@dataclass(frozen=True)
class FileEntry(Record):
    """A file inside a manifest: its name there, the SHA-256 (hex) of its bytes, its size in bytes."""

    name: str
    sha256: str
    size: int


class Manifest(Record):
    """A record that names files."""

    files: tuple[FileEntry, ...]

    def file(self, name: str) -> FileEntry:
        """The entry of the file called ``name``. Raises NotInStoreError when this manifest names none."""
        found = next((entry for entry in self.files if entry.name == name), None)
        if found is None:
            named = ", ".join(entry.name for entry in self.files) or "none"
            raise NotInStoreError(f"this {type(self).__name__} names no file {name!r}; its files are {named}")
        return found


@dataclass(frozen=True)
class BaseRef(Record):
    """The frozen base a stack belongs to. ``digest`` covers weights, configuration, tokenizer and quantization,
    not the path."""

    model: str
    digest: str = field()  # type: ignore[assignment]  # field(): or Record.digest, the method, would be its default
    quantization: str


@dataclass(frozen=True)
class StackRef(Record):
    """A committed stack, by identity and by the digest of its manifest."""

    stack: StackId
    manifest: str


@dataclass(frozen=True)
class StackManifest(Manifest):
    """Everything that identifies a committed stack (DESIGN: the store decides).

    ``position`` is the domain's place in the curriculum (from 0); with ``round`` it fixes the order in which
    stacks are fused, whatever order they are loaded in. ``parents`` is every stack committed before this one,
    in order; ``context`` those that fired while it trained. ``basis`` is the digest of the null-space basis
    it was confined to, or None. ``metrics`` holds ``val_before``, ``val_after``, ``gain`` (nats
    per completion token under ``context``, on the validation rows that decided), ``best_selection_loss`` (on those that
    selected the snapshot) and what else the round measured. ``objective`` is what it optimised, by entry number
    ``entry`` of its domain's rounds; of dpo and grpo, ``val_before`` and ``val_after`` are shares of prompts.
    """

    schema_version: int
    campaign: str
    stack: StackId
    position: int
    parents: tuple[StackRef, ...]
    context: tuple[StackId, ...]
    base: BaseRef
    config_digest: str
    data_fingerprint: str
    basis: str | None
    files: tuple[FileEntry, ...]
    metrics: dict[str, float]
    code_version: str
    objective: str = "sft"
    entry: int = 0


@dataclass(frozen=True)
class RowLoss(Record):
    """Summed negative log-likelihood (nats) of a row's completion, and how many tokens it was summed over."""

    nll: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.nll / self.tokens


# How a row can be answered: nothing added; its own domain's stacks; those with the parents they trained beside; all of
# them; the meta-router's gates; its domain's label as the gate; the one domain that is best on average; the
# classifier that the meta-router starts from; the best measured combination in hindsight.
MODES = ("base", "isolated", "parents", "ungated", "routed", "label", "best_single", "anchor", "oracle")


@dataclass(frozen=True)
class ModeLosses(Record):
    """One set of rows under several modes: ``nll[mode][i]`` is the summed loss (nats) of row i's ``tokens[i]``
    completion tokens, None where that mode has no meaning for the row or was not measured.

    ``owners`` holds each row's domain, or for a row that no domain owns its kind (``mixed:dose``, ``foreign:recipe``).
    ``gates[domain][i]`` is the gate weight of that domain under which row i was ``routed``.
    """

    row_ids: tuple[str, ...]
    owners: tuple[str, ...]
    tokens: tuple[int, ...]
    nll: dict[str, tuple[float | None, ...]]
    gates: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self):
        rows = len(self.row_ids)
        assert len(self.owners) == len(self.tokens) == rows, (rows, len(self.owners), len(self.tokens))
        for mode, nll in self.nll.items():
            assert mode in MODES, f"unknown mode {mode!r}; the modes are {MODES}"
            assert len(nll) == rows, f"{mode} has {len(nll)} losses for {rows} rows"
        for domain, gates in self.gates.items():
            assert len(gates) == rows, f"{domain} has {len(gates)} gates for {rows} rows"

    def select(self, rows: Sequence[int]) -> Self:
        """The same modes on these row indices, in this order."""
        return type(self)(
            tuple(self.row_ids[i] for i in rows),
            tuple(self.owners[i] for i in rows),
            tuple(self.tokens[i] for i in rows),
            {mode: tuple(nll[i] for i in rows) for mode, nll in self.nll.items()},
            {domain: tuple(gates[i] for i in rows) for domain, gates in self.gates.items()},
        )

    def losses(self, mode: str) -> list[RowLoss] | None:
        """Every row's loss under ``mode``; None without rows or where any of them was not measured in it."""
        nll = self.nll.get(mode, ())
        if not nll or any(value is None for value in nll):
            return None
        return [RowLoss(value, tokens) for value, tokens in zip(nll, self.tokens, strict=True) if value is not None]


@dataclass(frozen=True)
class JudgedAnswer(Record):
    """A row answered in words under one mode: with what gate weight of each domain, and whether ``text`` is right."""

    row_id: str
    owner: str
    mode: str
    gates: tuple[float, ...]
    prompt: str
    reference: str
    text: str
    right: bool


@dataclass(frozen=True)
class RoundOutcome(Record):
    """How one round ended, committed or not, and by which entry of its domain's rounds. Losses are nats per completion
    token; of a round of alignment (``objective`` dpo or grpo) they are the shares of prompts that went right, and the
    gain is what that share gained.

    ``val_before``, ``val_after`` and ``gain``, their paired difference with its standard error ``gain_error``, are over
    the ``rows`` validation rows that decided; the curve of the round is over others, which selected its snapshot.
    """

    stack: StackId
    val_before: float
    val_after: float
    gain: float
    gain_error: float
    rows: int
    committed: bool
    manifest: str | None
    steps: int
    restores: int
    seconds: float
    reason: str
    objective: str = "sft"
    entry: int = 0


EXAMPLES = "examples.jsonl"  # of a round of alignment, among its stack's files


@dataclass(frozen=True)
class BeforeAfter(Record):
    """A held-out prompt answered greedily before a round of alignment and after it, and whether that was right; None
    where nothing tells."""

    prompt: str
    before: str
    after: str
    right_before: bool | None
    right_after: bool | None


@dataclass(frozen=True)
class TrainRound(Record):
    """Train this stack by entry number ``entry`` of its domain's rounds. ``context`` fires frozen beside it."""

    stack: StackId
    position: int
    parents: tuple[StackRef, ...]
    context: tuple[StackId, ...]
    entry: int = 0


@dataclass(frozen=True)
class CloseDomain(Record):
    """No more rounds: measure the domain's directions and losses."""

    domain: str
    position: int
    stacks: tuple[StackId, ...]
    context: tuple[StackId, ...]


@dataclass(frozen=True)
class Finished(Record):
    """Every domain is closed."""


Step = TrainRound | CloseDomain | Finished


@dataclass(frozen=True)
class Spread(Record):
    """A share that was measured at every site: its mean over them, the worst of them, and the path of that ``site``."""

    mean: float
    worst: float
    site: str

    @classmethod
    def over(cls, shares: Mapping[str, float], *, low_is_bad: bool = False) -> Self | None:
        """Of shares by site path. None without a site."""
        if not shares:
            return None
        site = (min if low_is_bad else max)(shares, key=shares.__getitem__)
        return cls(sum(shares.values()) / len(shares), shares[site], site)


@dataclass(frozen=True)
class ProbedRow(Record):
    """A probe row: the SHA-256 (hex) of its logits' bytes, and its loss in nats per token, its prompt's included; None
    where that is not finite."""

    id: str
    logits: str
    loss: float | None


@dataclass(frozen=True)
class Probe(Record):
    """What a domain's own stacks alone make of its probe rows. ``environment`` holds what the bits hang on besides
    weights and tokens: device, threads, versions, the logits' own type."""

    rows: tuple[ProbedRow, ...]
    environment: dict[str, str]


@dataclass(frozen=True)
class DomainRecord(Record):
    """A domain's closing statement; no further round of it may commit once this ref exists.

    ``basis`` is the digest of the blob with the directions this domain claimed (None when it committed no
    stack or the null space is off). ``isolated`` is its loss with only its own stacks; ``row_losses`` the
    same per validation row, kept so that "nothing moved" can be shown row by row. ``matrix`` maps each
    domain closed so far to its losses ``{base, isolated, ungated}`` measured right after this one closed.
    ``rows`` is the digest of the blob with its encoded rows, which stay its rows from now on. ``probe`` holds digests
    of isolated logits on a few of them, kept so that equality to the bit can be shown without keeping the bits.
    ``capacity`` maps a site's width to the largest share of its directions claimed so far at any site of that width.

    The rest is of energies, sums of squares over training tokens. ``energy_held`` is by side what lies in claims once
    this domain is closed: of its delta in its own output claim, of what its stacks read in all input claims so far.
    By earlier domain, ``overlap`` is the share of this domain's delta in the space that holds 99 % of the earlier
    one's, ``overlap_claimed`` the share in what that one claimed of outputs; ``foreign`` the energy of the earlier
    one's delta on this domain's tokens against this one's own there, ``abroad`` the energy of this one's delta on the
    earlier one's tokens against that one's own there, both with all stacks firing. ``span`` is the digest of the blob
    that says, in rows of this domain's B, which directions hold 99 % of its delta.
    """

    schema_version: int
    domain: str
    position: int
    rounds: tuple[RoundOutcome, ...]
    basis: str | None
    basis_rank_mean: float
    isolated: float
    base_loss: float
    row_losses: tuple[float, ...]
    probe: Probe
    matrix: dict[str, dict[str, float]]
    capacity: dict[str, float]
    energy_held: dict[str, Spread]
    overlap: dict[str, Spread]
    overlap_claimed: dict[str, Spread]
    foreign: dict[str, Spread]
    abroad: dict[str, Spread]
    span: str | None
    data_fingerprint: str
    data_counts: dict[str, int]
    rows: str
    seconds: float

    def blobs(self) -> dict[str, str]:
        """The digest of every blob that it names, by what is in there."""
        named = {"rows": self.rows, "basis": self.basis, "span": self.span}
        return {what: digest for what, digest in named.items() if digest is not None}


@dataclass(frozen=True)
class BundleManifest(Manifest):
    """What one serves: a base, an ordered set of committed stacks and a meta-router.

    ``files`` holds ``router.safetensors``, ``router.json``, ``campaign.yaml`` (the resolved config), the sweep's
    ``outcomes.parquet``, by row and mode ``losses.parquet`` and ``answers.parquet``, and ``certificate.json``. How
    logits become gate weights is in ``router.json``.
    """

    schema_version: int
    campaign: str
    number: int
    base: BaseRef
    domains: tuple[str, ...]
    stacks: tuple[StackRef, ...]
    files: tuple[FileEntry, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    config_digest: str = ""
    code_version: str = ""


# What a bundle can be: the one that is served, and the newest of those that were not let in its place.
CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Promotion(Record):
    """One decision about who is served. ``bundle`` and its ``manifest`` become what ``alias`` says, champion or
    challenger; ``by`` is the policy that decided, or ``hand`` or ``rollback``; ``reason`` says why, in words."""

    schema_version: int
    number: int
    bundle: int
    manifest: str
    alias: str
    by: str
    reason: str


# What became of a domain whose stacks were retired: it is gone; it trains anew; what is left of it closes again; one
# stack in the place of its rounds does.
REMOVED, REPLACED, ROLLED_BACK, MERGED = "removed", "replaced", "rolled back", "merged"
FATES = (REMOVED, REPLACED, ROLLED_BACK, MERGED)


@dataclass(frozen=True)
class Retirement(Record):
    """Stacks that are taken out of a campaign. They stay in its history; nothing counts them any more.

    ``domain`` is the one that was asked for, ``fates`` what becomes of it and of each domain that is retrained with it.
    ``kept`` names the dependants that stay as they are, each with the retired stacks that fired while it trained; none
    where it only kept out of their directions. ``withdrawn``: no bundle that holds one of ``stacks`` is served from
    then on; else one is until a bundle without them follows. ``into`` is the stack that takes the rounds' place in a
    domain that is merged, None of every other. ``when`` is a UTC time, ISO 8601.
    """

    schema_version: int
    number: int
    domain: str
    fates: dict[str, str]
    stacks: tuple[StackRef, ...]
    kept: dict[str, tuple[str, ...]]
    withdrawn: bool
    into: StackRef | None
    reason: str
    when: str


@dataclass(frozen=True)
class Erasure(Record):
    """Bytes that are deleted on request: what only the retired ``stacks`` of ``domain``, its closings that are not in
    force and the bundles which held those stacks lead to. ``digests`` gives the size in bytes of each; history,
    manifests and closing records stay and name them.
    """

    schema_version: int
    number: int
    domain: str
    stacks: tuple[StackRef, ...]
    digests: dict[str, int]
    reason: str
    when: str
