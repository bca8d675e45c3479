"""How alike inverse questions are, what the search for near duplicates costs, and what it leaves out.

    python -m benchmarks.near_duplicates --config jobs/configs/embedded.yaml --data chat=chat.jsonl code=code.jsonl

Likeness is measured on pairs of questions about the same ICD-10-CM category, asked in both directions, and on pairs
about two categories in the same words, among the rows of the campaign that the config describes. ``--data`` adds the
cost on JSON lines with ``prompt`` and ``completion``, of which ``--held-out`` are taken for held-out rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from bs_cluster.config.parse import load_config
from bs_cluster.data.builtin import package_file
from bs_cluster.data.domains import load_domains
from bs_cluster.data.icd import read_categories
from bs_cluster.data.near_duplicates import Splits, drop_near_duplicates, words_of
from bs_cluster.data.rows import Row, make_row

PAIRS = 300


def likeness_of_pairs(rows: Sequence[Row], seed: int = 0) -> tuple[list[float], list[float]]:
    """(of the same category in both directions, of two categories in the same words): weighted Jaccard indices."""
    path = package_file("simple_icd_10_cm", "data/icd10c-tabular*.xml", "simple-icd-10-cm")
    sample = random.Random(seed).sample(read_categories(path), PAIRS)
    means = [make_row(f"What does the ICD-10-CM category {d.code} stand for?", f"{d.title}.", "icd") for d in sample]
    asks = "What is the ICD-10-CM category of this diagnosis"
    asked = [make_row(f"{asks}: {d.title}?", f"{d.code}.", "icd") for d in sample]
    everything = [words_of(row) for row in {row.id: row for row in (*rows, *means, *asked)}.values()]
    frequency = Counter(word for words in everything for word in words)
    weight = {word: math.log(len(everything) / count) for word, count in frequency.items()}

    def likeness(a: Row, b: Row) -> float:
        shared, united = words_of(a) & words_of(b), words_of(a) | words_of(b)
        return math.fsum(weight[word] for word in shared) / math.fsum(weight[word] for word in united)

    same = [likeness(a, b) for a, b in zip(means, asked, strict=True)]
    different = [likeness(a, b) for side in (means, asked) for a, b in itertools.combinations(side, 2)]
    return same, different


def cost(names: Sequence[str], domains: Sequence[Splits], threshold: float) -> str:
    """Seconds of processor time for 10,000 rows, and the rows left out of each domain."""
    started = time.process_time()
    after = drop_near_duplicates(domains, threshold)
    seconds = time.process_time() - started
    rows = sum(splits.size for splits in domains)
    held_out = sum(len(splits.validation) + len(splits.sweep) for splits in domains)
    left = {name: a.size - b.size for name, a, b in zip(names, domains, after, strict=True)}
    return (
        f"{rows:,} rows, {held_out:,} held out: {seconds * 10_000 / rows:.1f} s of processor time for 10,000 rows; "
        f"{sum(left.values())} left out ({', '.join(f'{name} {count}' for name, count in left.items())})"
    )


def file_splits(files: Sequence[str], held_out: int) -> Iterator[Splits]:
    """Each file a domain, its first rows held out for the sweep, in proportion to its size."""
    domains = []
    for named in files:
        name, _, path = named.partition("=")
        lines = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
        domains.append([make_row(line["prompt"], line["completion"], name) for line in lines])
    share = held_out / sum(map(len, domains))
    for rows in domains:
        cut = round(share * len(rows))
        yield Splits(tuple(rows[cut:]), (), tuple(rows[:cut]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.near_duplicates", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="jobs/configs/embedded.yaml")
    parser.add_argument("--data", nargs="*", default=[], help="domain=file.jsonl")
    parser.add_argument("--held-out", type=int, default=2000, help="rows of --data that are held out")
    parser.add_argument("--threshold", type=float, default=0.55)
    asked = parser.parse_args()
    loaded = load_domains(load_config(asked.config, ["data.near_duplicates=null"]))
    campaign = [Splits(data.train, data.validation, data.sweep) for data in loaded.values()]
    rows = [row for splits in campaign for row in (*splits.train, *splits.validation, *splits.sweep)]
    same, different = likeness_of_pairs(rows)
    print(
        f"{len(same)} inverse pairs: {min(same):.2f} to {max(same):.2f}, median {statistics.median(same):.2f}, "
        f"{sum(value < asked.threshold for value in same)} below {asked.threshold}; "
        f"{len(different):,} pairs of two categories in the same words: median {statistics.median(different):.2f}, "
        f"at most {max(different):.2f}, {sum(value >= asked.threshold for value in different)} of them not below"
    )
    print(f"the campaign: {cost(list(loaded), campaign, asked.threshold)}")
    if asked.data:
        names = [named.partition("=")[0] for named in asked.data]
        print(f"the files: {cost(names, list(file_splits(asked.data, asked.held_out)), asked.threshold)}")


if __name__ == "__main__":
    main()
