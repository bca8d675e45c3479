"""A campaign's rows: what a domain has begun with it goes on with."""

import dataclasses

import pytest
from tiny_campaign import campaign, write_inputs
from tiny_history import stack_manifest, write_files

from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.encoding import encode_domains
from bs_cluster.errors import DataError


def test_an_open_domain_goes_on_with_the_rows_it_began_with_and_with_no_others(tmp_path):
    folder = write_inputs(tmp_path)
    made = Campaign.of(campaign(folder, tmp_path / "store", ("aa", "bb")))
    rows = encode_domains(made)["aa"]
    staged = write_files(tmp_path / "staged")
    manifest = dataclasses.replace(stack_manifest(made.store, staged, "aa", 1), data_fingerprint=rows.fingerprint)
    made.store.commit_stack(manifest, staged)
    assert encode_domains(made)["aa"] == rows
    with (folder / "bb.jsonl").open("a") as file:
        file.write('{"prompt": "bb new", "completion": "wen"}\n')
    assert encode_domains(made)["aa"] == rows  # a domain that has not begun may change
    with (folder / "aa.jsonl").open("a") as file:
        file.write('{"prompt": "aa new", "completion": "NEW"}\n')
    with pytest.raises(DataError, match=r"domain aa: its rows are not those that its committed rounds trained on"):
        encode_domains(made)
