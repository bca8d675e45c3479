"""What to make of nodes' facts: a line each, green or with what to do. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bs_cluster.doctor.facts import Facts
from bs_cluster.records import Record

SKEW_S = 2.0  # clocks further apart make an object's age and a run's order in MLflow wrong
TROUBLES = {"store": "store", "base": "base model", "data": "rows' sources", "compiler": "compiler"}


@dataclass(frozen=True)
class Check(Record):
    """``node`` is empty for what is about all of them. ``told`` says what was found, and what to do unless ``ok``."""

    name: str
    node: str
    ok: bool
    told: str


@dataclass(frozen=True)
class Clock:
    """How far a node's clock is ahead of the driver's, and how wrong that may be, in seconds."""

    ahead: float
    error: float


def check_gpus(found: Mapping[str, Facts], counted: Mapping[str, float]) -> Iterator[Check]:
    """Whether each node has the GPUs that Ray counts on; nothing where it counts on none."""
    for node, facts in found.items():
        if counted.get(node, 0) > facts.gpus:
            told = f"Ray counts on {counted[node]:g} GPUs, {facts.gpus} are seen; mend the driver, or start Ray with"
            yield Check("gpus", node, False, f"{told} --num-gpus={facts.gpus}")
    if any(counted.values()) and all(counted.get(node, 0) <= facts.gpus for node, facts in found.items()):
        yield Check("gpus", "", True, f"all {sum(counted.values()):g} that Ray counts on are seen")


def check_nodes(found: Mapping[str, Facts], clocks: Mapping[str, Clock], wanted_disk: int) -> Iterator[Check]:
    """Everything that facts alone tell; nodes by the label that people know them by, the head first. Without ``clocks``
    there is no cluster, and nothing to be said of its token and its sockets."""
    yield from _versions(found)
    if clocks:
        yield from _tokens(found)
        yield from _ports(found)
        yield from _clocks(clocks)
    for name, what in TROUBLES.items():
        bad = {node: facts.troubles[name] for node, facts in found.items() if name in facts.troubles}
        yield from (Check(what, node, False, told) for node, told in bad.items())
        if not bad:
            yield Check(what, "", True, "well on every node")
    yield from _disks(found, wanted_disk)


def _versions(found: Mapping[str, Facts]) -> Iterator[Check]:
    differ = False
    first = next(iter(found.values()))
    for package in first.versions:
        by_node = {node: facts.versions[package] for node, facts in found.items()}
        for node, odd, usual in _odd_ones(by_node):
            differ = True
            yield Check("versions", node, False, f"{package} {odd}, elsewhere {usual}; install {package} {usual} here")
        if "not installed" in by_node.values() and len(set(by_node.values())) == 1:
            differ = True
            yield Check("versions", "", False, f"{package} is not installed; pip install it on every node")
    if not differ:
        told = ", ".join(f"{name} {number}" for name, number in first.versions.items())
        yield Check("versions", "", True, told)
    codes = list(_odd_ones({node: facts.code[:12] for node, facts in found.items()}))
    for node, odd, usual in codes:
        told = f"bs_cluster's files are others ({odd}) than elsewhere ({usual}); submit with --working-dir, or install"
        yield Check("code", node, False, f"{told} the same checkout here")
    if not codes:
        yield Check("code", "", True, f"bs_cluster's files are the same, {first.code[:12]}")


def _tokens(found: Mapping[str, Facts]) -> Iterator[Check]:
    tokens = {node: facts.token for node, facts in found.items()}
    without = [node for node, token in tokens.items() if not token]
    if len(without) == len(tokens):
        told = "no token is asked for: whoever reaches the cluster runs code on it; RAY_AUTH_MODE=token on every node"
        yield Check("token", "", False, told)
        return
    odd = [(node, other) for node, other, _ in _odd_ones(tokens)]
    for node, other in odd:
        what = f"holds another token ({other})" if other else "holds no token"
        yield Check("token", node, False, f"{what}; give it that of the others, RAY_AUTH_TOKEN_PATH")
    if not odd:
        yield Check("token", "", True, "every node holds the same one")


def _clocks(clocks: Mapping[str, Clock]) -> Iterator[Check]:
    late = {node: clock for node, clock in clocks.items() if abs(clock.ahead) - clock.error > SKEW_S}
    for node, clock in late.items():
        way = "ahead of" if clock.ahead > 0 else "behind"
        yield Check("clock", node, False, f"{abs(clock.ahead):.1f} s {way} the driver's; start chrony or ntpd here")
    if not late:
        most = max(abs(clock.ahead) + clock.error for clock in clocks.values())
        yield Check("clock", "", True, f"at most {most:.2f} s apart")


def _disks(found: Mapping[str, Facts], wanted: int) -> Iterator[Check]:
    full = {node: facts.free_disk for node, facts in found.items() if facts.free_disk < wanted}
    for node, free in full.items():
        told = f"{free / 1e9:.1f} GB free, the base and copies of all stacks take {wanted / 1e9:.1f}; make room, or set"
        yield Check("disk", node, False, f"{told} base.cache_dir to a larger one")
    if not full:
        least = min(facts.free_disk for facts in found.values())
        yield Check("disk", "", True, f"{least / 1e9:.1f} GB free at least, {wanted / 1e9:.1f} wanted")


def _ports(found: Mapping[str, Facts]) -> Iterator[Check]:
    """Behind a token a listening socket of Ray's is no open door."""
    bare = {node: facts.open_ports for node, facts in found.items() if facts.open_ports and not facts.token}
    for node, ports in bare.items():
        shown = ", ".join(map(str, ports[:6])) + (" …" if len(ports) > 6 else "")
        told = f"ports {shown} listen on all interfaces and ask for no token; RAY_AUTH_MODE=token, or a firewall"
        yield Check("addresses", node, False, told)
    if not bare:
        count = sum(len(facts.open_ports) for facts in found.values())
        told = f"{count} sockets on all interfaces, behind the token" if count else "none of ours on all interfaces"
        yield Check("addresses", "", True, told)


def _odd_ones(by_node: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(node, its value, the usual one) of nodes whose value is not the most frequent; of equals the driver's."""
    usual = Counter(by_node.values()).most_common(1)[0][0]
    yield from ((node, value, usual) for node, value in by_node.items() if value != usual)


def healthy(checks: Sequence[Check]) -> bool:
    return all(check.ok for check in checks)
