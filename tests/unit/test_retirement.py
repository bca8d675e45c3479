"""What is live, as a pure function of the facts of a history; and what a retirement takes with it."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_history import BASE, domain_record

from bs_cluster.errors import IntegrityError, UsageError
from bs_cluster.records import (
    FATES,
    MERGED,
    REMOVED,
    REPLACED,
    ROLLED_BACK,
    SCHEMA_VERSION,
    RoundOutcome,
    StackId,
    StackManifest,
    StackRef,
)
from bs_cluster.retirement import Live, Request, dependants, live, missing_parents, plan, told_today


class History:
    """A campaign in memory: facts in order, and the manifest of each stack."""

    def __init__(self, cumulative: bool = True, confined: bool = True):
        self.cumulative, self.confined = cumulative, confined
        self.facts: list = []
        self.manifests: dict[StackRef, StackManifest] = {}

    @property
    def live(self) -> Live:
        return live(self.facts)

    @property
    def committed(self):
        return [(ref, self.manifests[ref]) for ref in self.live.stacks]

    def stack(self, name: str, number: int) -> StackRef:
        ref = StackRef(StackId(name, number), f"{name}{number}".ljust(64, "0"))
        before = self.live.stacks
        fired = [other for other in before if self.cumulative or other.stack.domain == name]
        self.manifests[ref] = StackManifest(
            schema_version=SCHEMA_VERSION,
            campaign="demo",
            stack=ref.stack,
            position=0,
            parents=before,
            context=tuple(other.stack for other in fired),
            base=BASE,
            config_digest="",
            data_fingerprint="",
            basis="b" * 64 if self.confined and before else None,
            files=(),
            metrics={},
            code_version="",
        )
        self.facts.append(ref)
        return ref

    def domain(self, name: str, *rounds: int):
        for number in rounds:
            self.stack(name, number)
        self.facts.append(closing(name, [ref for ref in self.live.stacks if ref.stack.domain == name]))

    def ask(self, domain: str, fate: str, **more):
        number = 1 + sum(hasattr(fact, "fates") for fact in self.facts)
        return plan(Request(domain, fate, reason="why", when="now", **more), number, self.live, self.committed)

    def retire(self, domain: str, fate: str, **more):
        found = self.ask(domain, fate, **more)
        assert found is not None
        self.facts.append(found)
        return found


class NoStore:
    """Where a closing record's rows would go."""

    def stacks(self):
        return []

    def put_bytes(self, name, data):
        return dataclasses.make_dataclass("Entry", ["sha256"])("a" * 64)


def closing(name: str, refs):
    rounds = tuple(RoundOutcome(ref.stack, 3, 2, 1, 0.1, 2, True, ref.manifest, 3, 0, 1.0, "") for ref in refs)
    return dataclasses.replace(domain_record(NoStore(), name), rounds=rounds)


def names(stacks) -> list[str]:
    return [ref.stack.name for ref in stacks]


@pytest.fixture
def history():
    history = History()
    history.domain("aa", 1, 2)
    history.domain("bb", 1)
    history.domain("cc", 1)
    return history


def test_a_removed_domain_is_gone_and_its_dependants_are_told(history):
    found = history.retire("bb", REMOVED)
    assert names(found.stacks) == ["bb_r1"]
    assert found.kept == {"cc": ("bb_r1",)}
    assert names(history.live.stacks) == ["aa_r1", "aa_r2", "cc_r1"]
    assert list(history.live.closings) == ["aa", "cc"]
    assert list(history.live.gone) == ["bb"]
    assert missing_parents(history.manifests[history.live.stacks[-1]], history.live.stacks) == ("bb_r1",)


def test_what_only_kept_out_of_its_directions_has_no_parent_missing():
    history = History(cumulative=False)
    history.domain("aa", 1)
    history.domain("bb", 1)
    assert history.ask("aa", REMOVED).kept == {"bb": ()}
    unconfined = History(cumulative=False, confined=False)
    unconfined.domain("aa", 1)
    unconfined.domain("bb", 1)
    assert unconfined.ask("aa", REMOVED).kept == {}


def test_dependants_may_train_anew_with_it_and_those_of_theirs_are_kept(history):
    history.domain("dd", 1)
    found = history.retire("bb", REPLACED, retrain=("cc",))
    assert names(found.stacks) == ["bb_r1", "cc_r1"]
    assert found.fates == {"bb": REPLACED, "cc": REPLACED}
    assert found.kept == {"dd": ("bb_r1", "cc_r1")}
    assert list(history.live.closings) == ["aa", "dd"]
    with pytest.raises(UsageError, match="aa does not depend"):
        history.ask("dd", REPLACED, retrain=("aa",))


def test_a_round_that_is_taken_back_leaves_the_rest_to_close_again(history):
    before = history.live.closings["aa"]
    found = history.retire("aa", ROLLED_BACK)
    assert names(found.stacks) == ["aa_r2"]
    assert found.kept == {"bb": ("aa_r2",), "cc": ("aa_r2",)}
    assert history.live.reopened == {"aa": before}
    assert history.ask("aa", ROLLED_BACK) is None, "the same words again take no further round"
    history.domain("aa")
    assert history.live.reopened == {}
    assert list(history.live.closings) == ["bb", "cc", "aa"]
    with pytest.raises(UsageError, match="one of them has to stay"):
        history.ask("aa", ROLLED_BACK)
    assert history.ask("aa", ROLLED_BACK, to=1) is None


class TestMerged:
    def test_one_stack_takes_the_place_of_all_rounds_at_once_and_closes_again(self, history):
        before = history.live
        into = history.stack("aa", 3)
        assert history.live.waiting == (into,)
        assert (history.live.stacks, history.live.closings) == (before.stacks, before.closings), "it waits"
        found = history.retire("aa", MERGED, into=into)
        assert names(found.stacks) == ["aa_r1", "aa_r2"]
        assert found.kept == {"bb": ("aa_r1", "aa_r2"), "cc": ("aa_r1", "aa_r2")}
        assert names(history.live.stacks) == ["bb_r1", "cc_r1", "aa_r3"]
        assert history.live.waiting == ()
        assert history.live.reopened == {"aa": before.closings["aa"]}
        history.domain("aa")
        assert list(history.live.closings) == ["bb", "cc", "aa"]
        assert history.retire("aa", REMOVED).stacks == (into,)

    def test_one_that_never_came_in_is_retired_with_its_domain(self, history):
        first, second = history.stack("aa", 3), history.stack("aa", 4)
        history.retire("aa", MERGED, into=second)
        assert first in history.live.retired
        assert names(history.live.stacks) == ["bb_r1", "cc_r1", "aa_r4"]
        third = history.stack("bb", 2)
        history.retire("bb", REMOVED)
        assert third in history.live.retired, "what is erased with the domain includes it"

    @pytest.mark.parametrize("domain", ["aa", "bb"])
    def test_what_does_not_wait_there_cannot_come_in(self, history, domain):
        there, into = history.live.stacks[0], history.stack("aa", 3)
        found = history.ask("aa", MERGED, into=into)
        with pytest.raises(IntegrityError, match="brings in another stack"):
            live([*history.facts, dataclasses.replace(found, into=there)])
        with pytest.raises(IntegrityError, match="brings in another stack"):
            live([*history.facts, dataclasses.replace(found, into=None)])
        with pytest.raises(IntegrityError, match="brings in another stack"):
            live([*history.facts, dataclasses.replace(history.ask(domain, REPLACED), into=into)])
        with pytest.raises(UsageError, match="no stack waits"):
            history.ask("aa", MERGED, into=there)


@pytest.mark.parametrize("fate", [REMOVED, REPLACED])
def test_the_same_words_again_change_nothing(history, fate):
    history.retire("bb", fate)
    assert history.ask("bb", fate) is None


def test_what_makes_no_sense_is_refused(history):
    with pytest.raises(UsageError, match="no domain 'zz'"):
        history.ask("zz", REMOVED)
    with pytest.raises(UsageError, match="has the rounds 1, 2"):
        history.ask("aa", ROLLED_BACK, to=3)
    history.retire("bb", REMOVED)
    with pytest.raises(UsageError, match="another name"):
        history.ask("bb", REPLACED)
    history.retire("cc", REMOVED)
    with pytest.raises(UsageError, match="all that the campaign has"):
        history.ask("aa", REMOVED)


def test_a_replaced_domain_closes_last_and_older_records_say_nothing_of_it(history):
    history.retire("bb", REPLACED)
    history.domain("bb", 2)
    assert list(history.live.closings) == ["aa", "cc", "bb"]
    measured = {name: {"base": 3.0} for name in ("aa", "bb", "cc")}
    records = [dataclasses.replace(record, matrix=measured) for record in history.live.closings.values()]
    assert [list(record.matrix) for record in told_today(records)] == [["aa"], ["aa", "cc"], ["aa", "bb", "cc"]]


def test_a_history_that_contradicts_itself_is_refused(history):
    found = history.ask("bb", REMOVED)
    with pytest.raises(IntegrityError, match="was not there"):
        live([*history.facts, found, found])
    with pytest.raises(IntegrityError, match="closes twice"):
        live([*history.facts, history.live.closings["bb"]])
    with pytest.raises(IntegrityError, match="other rounds"):
        live([*history.facts, dataclasses.replace(found, fates={"bb": ROLLED_BACK})])


@given(st.lists(st.tuples(st.sampled_from(["aa", "bb", "cc"]), st.sampled_from(FATES))))
def test_whatever_is_asked_committed_is_live_or_retired_and_never_both(asked):
    history = History()
    for name in ("aa", "bb", "cc"):
        history.domain(name, 1, 2)
    for number, (domain, fate) in enumerate(asked, start=3):
        more = {"into": history.stack(domain, number)} if fate == MERGED and domain in history.live.closings else {}
        try:
            found = history.ask(domain, fate, **more)
        except UsageError:
            continue
        if found is not None:
            taken = dependants(history.committed, found.stacks)
            assert set(found.kept) <= set(taken)
            history.facts.append(found)
        now = history.live
        assert set(now.stacks) | set(now.retired) | set(now.waiting) == set(history.manifests)
        assert len(now.stacks) + len(now.retired) + len(now.waiting) == len(history.manifests)
        assert not set(now.closings) & (set(now.reopened) | set(now.gone))
