"""What a closing measures of energies, against every token's delta written out one by one, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_campaign import campaign, commit_random_stacks, write_inputs
from unit.stacks.reference import PlainStack

from bs_cluster.adapter_format import PARTS
from bs_cluster.basis import Basis
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import DomainRows
from bs_cluster.records import CloseDomain, DomainRecord, RoundOutcome, Spread, StackId, canonical_json
from bs_cluster.store import Store
from bs_cluster.training.closing import close_domain
from bs_cluster.training.interference import SAMPLE_ROWS
from bs_cluster.training.session import Session

DOMAINS = ("aa", "bb", "cc")
ROWS = 40


def domain_rows(domain: str) -> DomainRows:
    """More training rows than are sampled, of several lengths; a vocabulary of its own."""
    generator = torch.Generator().manual_seed(DOMAINS.index(domain))

    def row(number: int, split: str) -> EncodedRow:
        low = 10 + 60 * DOMAINS.index(domain)
        ids = torch.randint(low, low + 60, (4 + number % 5,), generator=generator)
        return EncodedRow(tuple(ids.tolist()), 2, f"{domain}-{split}-{number}", domain)

    train = tuple(row(number, "train") for number in range(ROWS))
    return DomainRows(train, (row(0, "validation"), row(1, "validation")), (), (), (), domain, {"train": ROWS})


class Closed:
    """Three domains of one random stack each, closed in order, the model in float64."""

    def __init__(self, folder, space: str | None):
        null_space = {"enabled": space is not None, "space": space or "output", "max_rank": 5, "max_share": 1.0}
        config = campaign(
            write_inputs(folder),
            folder / "store",
            DOMAINS,
            base={"quantization": "none", "cache_dequantized": False, "compute_dtype": "float32"},
            null_space=null_space,
        )
        self.store = Store(config.store.uri, config.campaign)
        self.stacked = commit_random_stacks(config, self.store, folder / "staged")
        self.stacked.base.model.double()
        self.rows = {domain: domain_rows(domain) for domain in DOMAINS}
        session = Session(config, self.stacked, self.store, self.rows.__getitem__, lambda _: None)
        self.records: dict[str, DomainRecord] = {}
        for position, domain in enumerate(DOMAINS):
            stacks = (StackId(domain, 1),)
            outcome = RoundOutcome(stacks[0], 3.0, 2.0, 1.0, 0.1, 2, True, None, 3, 0, 1.0, "random")
            self.records[domain] = close_domain(session, CloseDomain(domain, position, stacks, stacks), [outcome])
            self.store.close_domain(self.records[domain])
        self.paths = self.stacked.tuner.site_names()

    def claim(self, domain: str) -> Basis:
        return Basis.from_bytes(self.store.get_bytes(self.records[domain].basis))

    @torch.no_grad()
    def passed(self, domain: str, firing: tuple[str, ...], sampled: bool) -> dict[str, torch.Tensor]:
        """What each site is given on the domain's training tokens, by path, row by row and unpacked."""
        seen: dict[str, list[torch.Tensor]] = {path: [] for path in self.paths}
        hooks = [
            site.register_forward_pre_hook(lambda _, args, path=path: seen[path].append(args[0][0]))
            for path, site in zip(self.paths, self.stacked.tuner.sites, strict=True)
        ]
        self.stacked.fire([f"{name}_r1" for name in firing])
        rows = self.rows[domain].train
        for row in [rows[i * ROWS // SAMPLE_ROWS] for i in range(SAMPLE_ROWS)] if sampled else rows:
            self.stacked.base.model(input_ids=torch.tensor([row.input_ids]))
        for hook in hooks:
            hook.remove()
        return {path: torch.cat(parts) for path, parts in seen.items()}

    def deltas(
        self, of: str, on: str, firing: tuple[str, ...] | None = None, sampled: bool = False
    ) -> dict[str, torch.Tensor]:
        """Every delta (T, O) of the domain ``of`` on the tokens of ``on``, by site."""
        passed = self.passed(on, firing or (on,), sampled)
        return {
            path: PlainStack(*(getattr(site, part)[f"{of}_r1"].detach() for part in PARTS)).delta(
                passed[path], site.top_k, site.scale
            )
            for path, site in zip(self.paths, self.stacked.tuner.sites, strict=True)
        }


@pytest.fixture(scope="module", params=["output", "input", None], ids=["output", "input", "off"])
def closed(request, tmp_path_factory) -> Closed:
    return Closed(tmp_path_factory.mktemp("closed"), request.param)


def energy(x: torch.Tensor) -> float:
    return float(x.square().sum())


def assert_spread(found: Spread, shares: dict[str, float], worst) -> None:
    assert found.mean == pytest.approx(sum(shares.values()) / len(shares), rel=1e-5)
    assert found.worst == pytest.approx(worst(shares.values()), rel=1e-5)
    assert shares[found.site] == pytest.approx(found.worst, rel=1e-5)


def test_energy_held_is_the_share_of_every_delta_inside_the_claim(closed):
    for domain in DOMAINS if "output" in closed.records["aa"].energy_held else ():
        deltas, claim = closed.deltas(domain, domain), closed.claim(domain)
        shares = {path: energy(d @ claim.output[path].double()) / energy(d) for path, d in deltas.items()}
        assert_spread(closed.records[domain].energy_held["output"], shares, min)
        assert closed.records[domain].energy_held["output"].worst < 0.999  # a rank of five cuts something off


def test_energy_held_of_inputs_is_what_is_read_inside_all_claims_so_far(closed):
    claims = []
    for domain in DOMAINS if "input" in closed.records["aa"].energy_held else ():
        claims.append(closed.claim(domain))
        so_far = Basis.combine(claims).input
        passed = closed.passed(domain, (domain,), sampled=True)
        shares = {path: energy(x @ so_far[path].double()) / energy(x) for path, x in passed.items()}
        assert_spread(closed.records[domain].energy_held["input"], shares, min)


def test_a_side_that_is_not_claimed_holds_nothing_that_could_be_told(closed):
    sides = {side for record in closed.records.values() for side in record.energy_held}
    assert len(sides) == (1 if closed.records["aa"].basis else 0)


def test_overlap_is_the_share_of_a_later_delta_where_the_earlier_one_writes(closed):
    """In the leading directions, by SVD of all its deltas, that hold 99 % of it; whatever is claimed."""
    sampled = closed.records["aa"].basis is None  # then no pass over all tokens is made
    spaces = {}
    for domain in DOMAINS:
        deltas = closed.deltas(domain, domain, sampled=sampled)
        record = closed.records[domain]
        assert set(record.overlap) == set(spaces)
        for earlier, space in spaces.items():
            shares = {path: energy(d @ space[path]) / energy(d) for path, d in deltas.items()}
            assert_spread(record.overlap[earlier], shares, max)
        spaces[domain] = {path: leading(d, 0.99) for path, d in deltas.items()}


def leading(deltas_TO: torch.Tensor, share: float) -> torch.Tensor:
    _, s, vh = torch.linalg.svd(deltas_TO, full_matrices=False)
    held = torch.cumsum(s**2, 0) / (s**2).sum()
    return vh[: int((held < share).sum()) + 1].t()


def test_overlap_with_a_claim_is_the_share_of_a_later_delta_inside_it(closed):
    for later, earlier in (("bb", "aa"), ("cc", "aa"), ("cc", "bb")):
        found = closed.records[later].overlap_claimed.get(earlier)
        if not closed.records["aa"].energy_held.get("output"):
            assert found is None
            continue
        claim = closed.claim(earlier).output
        shares = {p: energy(d @ claim[p].double()) / energy(d) for p, d in closed.deltas(later, later).items()}
        assert_spread(found, shares, max)


def test_foreign_and_abroad_are_energies_on_one_set_of_tokens_with_all_firing(closed):
    for position, later in enumerate(DOMAINS):
        record, firing = closed.records[later], DOMAINS[: position + 1]
        assert set(record.foreign) == set(record.abroad) == set(DOMAINS[:position])
        for earlier in DOMAINS[:position]:
            for on, found, of in ((later, record.foreign[earlier], earlier), (earlier, record.abroad[earlier], later)):
                theirs = closed.deltas(of, on, firing, sampled=True)
                own = closed.deltas(on, on, firing, sampled=True)
                assert_spread(found, {path: energy(theirs[path]) / energy(own[path]) for path in own}, max)


def test_claims_of_domains_are_orthogonal_and_add_up(closed):
    if closed.records["aa"].basis is None:
        return
    claims = [closed.claim(domain) for domain in DOMAINS]
    assert max(a.overlap(b) for a in claims for b in claims if a is not b) < 1e-10
    both = Basis.combine(claims)
    for side, path, basis_XK in both.entries():
        assert basis_XK.shape[1] == sum(getattr(claim, side)[path].shape[1] for claim in claims)


def test_the_record_is_small_and_round_trips(closed):
    for record in closed.records.values():
        assert DomainRecord.from_dict(record.to_dict()) == record
        assert len(canonical_json(record.to_dict())) < 5000
        assert all(closed.store.get_bytes(digest) for digest in record.blobs().values())


@given(st.dictionaries(st.text(min_size=1), st.floats(0, 10), min_size=1))
def test_a_spread_names_the_site_of_its_worst(shares):
    high, low = Spread.over(shares), Spread.over(shares, low_is_bad=True)
    assert high.worst == shares[high.site] == max(shares.values())
    assert low.worst == shares[low.site] == min(shares.values())
    assert low.worst <= low.mean + 1e-9
    assert low.mean <= high.worst + 1e-9


def test_a_spread_over_no_site_is_none():
    assert Spread.over({}) is None
