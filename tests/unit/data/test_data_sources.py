"""Readers: files, a local folder read as a Hub data set, reasoning-gym, the embedded domains."""

import codecs
import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from bs_cluster.config.sources import EMBEDDED_DOMAINS, EMBEDDED_ROWS, Source
from bs_cluster.data.builtin import EMBEDDED, MAX_COMPLETION, MAX_PROMPT, embedded_rows
from bs_cluster.data.pycode import module_pairs
from bs_cluster.data.readers import read_source
from bs_cluster.errors import DataError


def source(**settings):
    return TypeAdapter(Source).validate_python(settings)


def read(seed=0, **settings):
    return list(read_source(source(**settings), seed=seed))


@pytest.fixture
def folder(tmp_path):
    for part in range(2):
        rows = [{"prompt": f"p{part}{i}", "completion": "c", "kind": "even" if i % 2 == 0 else "odd"} for i in range(4)]
        (tmp_path / f"part{part}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"part{part}.parquet")
    return tmp_path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_files_are_read_in_order_of_name_filtered_then_capped(folder, kind):
    pattern = str(folder / f"*.{kind}")
    assert [row["prompt"] for row in read(kind=kind, path=pattern)] == [f"p{p}{i}" for p in range(2) for i in range(4)]
    odd = read(kind=kind, path=pattern, where={"kind": "odd"}, take=3)
    assert [row["prompt"] for row in odd] == ["p01", "p03", "p11"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_path_that_matches_nothing_is_named(folder, kind):
    with pytest.raises(DataError, match=r"no file matches '.*none\.x' in "):
        read(kind=kind, path=str(folder / "none.x"))


def test_broken_files_are_named_with_the_line(folder):
    (folder / "bad.jsonl").write_text('{"prompt": "p"}\n{"prompt"\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2 is not JSON"):
        read(kind="jsonl", path=str(folder / "bad.jsonl"))
    (folder / "list.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match=r"list\.jsonl:1 holds a list; one object a line"):
        read(kind="jsonl", path=str(folder / "list.jsonl"))
    with pytest.raises(DataError, match=r"bad\.jsonl cannot be read as Parquet"):
        read(kind="parquet", path=str(folder / "bad.jsonl"))


ROW = b'{"prompt": "p", "completion": "c"}\n'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (ROW + b'{"prompt": "\xff"}\n', r"x\.jsonl:2 is not UTF-8 \(byte 12\); save the file as UTF-8"),
        (codecs.BOM_UTF16_LE + ROW.decode().encode("utf-16-le"), r"x\.jsonl is UTF-16; save it as UTF-8"),
        (ROW + b'{"prompt": "\\ud83d"}\n', r"x\.jsonl:2 holds half a surrogate pair"),
        (ROW + b'{"prompt": ' + b"9" * 5000 + b"}\n", r"x\.jsonl:2 is not JSON"),
        (ROW + b"[" * 200_000 + b"\n", r"x\.jsonl:2 is nested too deep"),
        (gzip.compress(ROW)[:-9], r"x\.jsonl cannot be read: .*; mend it"),
        (gzip.compress(ROW)[:10] + b"rubbish", r"x\.jsonl cannot be read: .*; mend it"),
    ],
    ids=["bad-utf-8", "utf-16", "lone-surrogate", "huge-number", "deep", "cut-gzip", "bad-gzip"],
)
def test_files_that_are_no_good_are_named_with_line_and_way_out(tmp_path, data, reason):
    (tmp_path / "x.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=reason):
        read(kind="jsonl", path=str(tmp_path / "x.jsonl"))


@pytest.mark.parametrize(
    "data",
    [gzip.compress(ROW * 2), codecs.BOM_UTF8 + ROW * 2, ROW + b"\r\n" + ROW.strip()],
    ids=["gzip", "bom", "crlf"],
)
def test_gzip_a_byte_order_mark_and_blank_lines_are_read(tmp_path, data):
    (tmp_path / "x.jsonl").write_bytes(data)
    assert read(kind="jsonl", path=str(tmp_path / "x.jsonl")) == [{"prompt": "p", "completion": "c"}] * 2


def test_whole_surrogate_pairs_are_characters(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "\\ud83d\\ude00"}\n')
    assert read(kind="jsonl", path=str(tmp_path / "x.jsonl")) == [{"prompt": "\N{GRINNING FACE}"}]


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("bs_cluster.data.readers.MAX_LINE_BYTES", 1000)
    (tmp_path / "x.jsonl").write_bytes(gzip.compress(b"x" * 1_000_000))
    with pytest.raises(DataError, match="a line of more than 1000 bytes"):
        read(kind="jsonl", path=str(tmp_path / "x.jsonl"))


def test_where_on_a_column_that_is_not_there_says_which_are(folder):
    with pytest.raises(DataError, match=r"column 'topic'; the row has \['completion', 'kind', 'prompt'\]"):
        read(kind="jsonl", path=str(folder / "*.jsonl"), where={"topic": "x"})


@pytest.fixture
def hub_set(folder, monkeypatch):
    """A folder in the layout of a Hub data set, which ``load_dataset`` reads by the same code."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    data = folder / "set"
    data.mkdir()
    (folder / "part0.jsonl").rename(data / "train.jsonl")
    (folder / "part1.jsonl").rename(data / "test.jsonl")
    return str(data)


def test_a_hub_split_is_streamed_under_take_and_whole_without(hub_set):
    assert [row["prompt"] for row in read(kind="hub", name=hub_set, take=2)] == ["p00", "p01"]
    assert len(read(kind="hub", name=hub_set)) == 4


def test_a_missing_hub_split_is_an_error_and_never_another_split(hub_set):
    with pytest.raises(DataError, match="cannot load split 'validation' of"):
        read(kind="hub", name=hub_set, split="validation", take=2)


def test_labels_name_the_place():
    assert source(kind="hub", name="openai/gsm8k", config="main").label == "hub openai/gsm8k main train"
    assert source(kind="jsonl", path="data/*.jsonl").label == "jsonl data/*.jsonl"


def test_reasoning_gym_tasks_take_turns_and_more_rows_keep_the_fewer():
    few = read(kind="reasoning_gym", tasks=("gcd", "chain_sum"), take=5)
    more = read(kind="reasoning_gym", tasks=("gcd", "chain_sum"), take=9)
    assert [row["task"] for row in few] == ["gcd", "chain_sum", "gcd", "chain_sum", "gcd"]
    assert more[:5] == few
    assert read(kind="reasoning_gym", tasks=("gcd",), take=5, seed=99) != [row for row in more if row["task"] == "gcd"]


def test_unknown_tasks_and_domains_are_told():
    with pytest.raises(DataError, match=r"no task 'chain_sun'; close: chain_sum"):
        read(kind="reasoning_gym", tasks=("chain_sun",))
    with pytest.raises(DataError, match="no embedded rows 'law'; there are chains, characters"):
        read(kind="embedded", name="law")


@pytest.fixture(scope="module")
def built_in():
    return {name: embedded_rows(name, seed=42) for name in EMBEDDED_DOMAINS}


def test_the_config_names_the_built_in_domains_there_are():
    assert set(EMBEDDED_ROWS) == EMBEDDED.keys()


@pytest.mark.parametrize("name", EMBEDDED_DOMAINS)
def test_a_built_in_domain_is_large_enough_short_and_well_formed(built_in, name):
    rows = built_in[name]
    assert len({row.prompt for row in rows}) >= 600
    assert all(0 < len(row.prompt) <= MAX_PROMPT and 0 < len(row.completion) <= MAX_COMPLETION for row in rows)


@pytest.mark.parametrize("name", ["chat", "math", "reasoning"])  # quick ones; all are shuffled alike
def test_a_built_in_domain_is_the_same_for_the_same_seed_only(built_in, name):
    assert embedded_rows(name, seed=42) == built_in[name]
    assert embedded_rows(name, seed=43) != built_in[name]


def test_math_rows_are_true(built_in):
    sums = [completion.split(" = ") for prompt, completion, _ in built_in["math"] if prompt.startswith("Calculate ")]
    assert len(sums) > 20
    assert all(eval(left) == float(right) for left, right in sums)


def test_a_documented_function_becomes_a_task_and_its_body_the_answer():
    source = '''
def double(x: int) -> int:
    """Return twice x.

    More words.
    """
    return 2 * x

def _hidden(x):
    """Not public."""
    return x

class Stack:
    def top(self):
        """Return the last item."""
        return self.items[-1]

    def stub(self):
        """To be overridden."""
        raise NotImplementedError
'''
    assert list(module_pairs(source)) == [
        (
            "Write a Python function `double(x: int) -> int`: Return twice x.",
            "def double(x: int) -> int:\n    return 2 * x",
        ),
        ("Write a Python method `Stack.top(self)`: Return the last item.", "def top(self):\n    return self.items[-1]"),
    ]
