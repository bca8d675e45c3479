"""A domain's rows beside those of domains that closed before it: none that these trained or were judged on."""

import dataclasses

import pytest
from tiny_campaign import campaign, write_inputs
from tiny_history import commit_round, domain_record

from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.encoding import encode_domains
from bs_cluster.errors import DataError


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A folder with inputs and a store where ``aa`` is closed, its encoded rows, and the lines that they were made of.
    Its source gives others by now."""
    folder = tmp_path_factory.mktemp("closed")
    write_inputs(folder)
    alone = Campaign.of(campaign(folder, folder / "store", ("aa",)))
    rows, lines = encode_domains(alone)["aa"], (folder / "aa.jsonl").read_text().splitlines()
    commit_round(alone.store, folder / "staged", "aa", 1)
    blob = alone.store.put_bytes("rows.parquet", rows.to_parquet()).sha256
    record = dataclasses.replace(domain_record(alone.store, "aa"), rows=blob, data_fingerprint=rows.fingerprint)
    alone.store.close_domain(record)
    (folder / "bb.jsonl").rename(folder / "aa.jsonl")
    return folder, rows, lines


def second_domain(closed, taken: int, own: int):
    """Encodes ``bb``, whose file holds ``taken`` lines of the closed domain and ``own`` others."""
    folder, _, lines = closed
    others = (folder / "cc.jsonl").read_text().splitlines()
    (folder / "bb.jsonl").write_text("\n".join(lines[:taken] + others[:own]) + "\n")
    return encode_domains(Campaign.of(campaign(folder, folder / "store", ("aa", "bb"))))


def test_no_row_of_a_closed_domain_is_trained_or_judged_on_again(closed):
    both = second_domain(closed, taken=60, own=60)
    assert both["aa"].ids == closed[1].ids
    assert both["bb"].ids
    assert not both["bb"].ids & both["aa"].ids


def test_a_domain_that_keeps_too_few_rows_is_told_how_many_it_needs(closed):
    told = "domain bb: 2 of its validation rows belong to no closed domain; 4 are needed"
    with pytest.raises(DataError, match=told):
        second_domain(closed, taken=100, own=20)


def test_a_domain_of_taken_rows_alone_is_refused(closed):
    with pytest.raises(DataError, match="domain bb: every row of a split belongs to a domain that is closed already"):
        second_domain(closed, taken=90, own=0)
