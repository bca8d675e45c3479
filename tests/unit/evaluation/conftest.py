import dataclasses
import json

import pytest
from tiny_bundle import commit_bundle
from tiny_history import domain_record

from bs_cluster.data.encode import encode_rows
from bs_cluster.data.frozen import DomainRows
from bs_cluster.data.rows import make_row
from bs_cluster.evaluation.tasks import DEFINITIONS
from bs_cluster.promotion import HAND
from bs_cluster.records import CHAMPION
from bs_cluster.serving.runtime import BundleRuntime

TRAINED = 12  # rows of aa that its stack is said to have learned from


@pytest.fixture(scope="session")
def finished(inputs, tmp_path_factory):
    """A campaign of two domains whose champion is bundle 2; one of them closed with its rows."""
    made = commit_bundle(inputs, tmp_path_factory.mktemp("finished") / "store", ("aa", "bb"))
    lines = [json.loads(line) for line in (inputs / "aa.jsonl").read_text().splitlines()[:TRAINED]]
    rows = [make_row(line["prompt"], line["completion"], "aa") for line in lines]
    encoded = tuple(encode_rows(rows, made.stacked.base.tokenizer, made.config.data))
    frozen = DomainRows(encoded, (), (), (), (), "d" * 64, {}).to_parquet()
    held = made.store.put_bytes("rows.parquet", frozen).sha256
    made.store.close_domain(dataclasses.replace(domain_record(made.store, "aa"), rows=held))
    made.store.commit_bundle(dataclasses.replace(made.manifest, number=2))
    made.store.promote(2, CHAMPION, HAND, "the first with rows")
    return made


@pytest.fixture(scope="session")
def runtime(finished):
    return BundleRuntime(finished.store, finished.manifest, "cpu")


@pytest.fixture(scope="session")
def trained_prompt(inputs):
    return json.loads((inputs / "aa.jsonl").read_text().splitlines()[3])


@pytest.fixture(scope="session")
def files(tmp_path_factory, trained_prompt):
    """A task of a few rows of one's own, the third of which a stack was trained on; and one to answer in words."""
    folder = tmp_path_factory.mktemp("files")
    rows = [
        {"query": "aa alpha of old", "choices": [" ALPHA OF OLD", " x"], "gold": 0},
        {"query": "bb something longer than the window of a sliding layer is, word by word", "choices": [" 1", " 2"]},
        {"query": trained_prompt["prompt"], "choices": [trained_prompt["completion"], " no"], "gold": 0},
        {"query": "zz no domain's", "choices": [" yes", " no", " perhaps"], "gold": 2},
    ]
    (folder / "quiz.jsonl").write_text("".join(json.dumps({"gold": 1, **row}) + "\n" for row in rows))
    words = "task: words\noutput_type: generate_until\ndoc_to_text: query\ndoc_to_target: '{{choices[gold]}}'\n"
    words += "generation_kwargs: {until: ['e'], max_gen_toks: 6}\nmetric_list: [{metric: exact_match}]\n"
    plain = (DEFINITIONS / "choices.yaml").read_text().replace("task: choices", "task: quiz")
    (folder / "quiz.yaml").write_text(plain)
    rolling = "task: rolling\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: query\n"
    (folder / "rolling.yaml").write_text(rolling + "metric_list: [{metric: word_perplexity}]\n")
    (folder / "rolling.jsonl").write_text((folder / "quiz.jsonl").read_text())
    (folder / "words.yaml").write_text(words)
    (folder / "words.jsonl").write_text((folder / "quiz.jsonl").read_text())
    (folder / "lacking.jsonl").write_text('{"query": "what?", "choices": ["a"]}\n')
    (folder / "broken.jsonl").write_text('{"query": \n')
    return folder


@pytest.fixture
def ran(capsys):
    """Runs a command in this process: (exit code, stdout, stderr)."""
    from bs_cluster.cli.main import main  # noqa: PLC0415

    def ran(*words: str):
        code = main(words)
        told = capsys.readouterr()
        return code, told.out, told.err

    return ran
