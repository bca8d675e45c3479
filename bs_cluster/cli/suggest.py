"""``domains suggest``: prompts that no domain serves well, in groups, each the seed of a domain to come."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bs_cluster.cli import places
from bs_cluster.cli.output import Output
from bs_cluster.errors import UsageError

if TYPE_CHECKING:
    from bs_cluster.campaign.gaps import Gap, Gaps

NEAREST, WIDTH = 3, 72


def add_arguments(actions: Any) -> None:
    suggest = actions.add_parser("suggest", help="find prompts that no domain serves well, and group them")
    places.add_campaign(suggest)
    suggest.add_argument("--bundle", type=int, metavar="N", help="bundle N (default: the champion)")
    suggest.add_argument(
        "--prompts", type=Path, action="append", default=[], metavar="FILE.jsonl", help="rows to look at too (repeat)"
    )
    suggest.add_argument("--rows", type=int, default=500, metavar="N", help="of each file at most (default: 500)")
    suggest.add_argument("--out", type=Path, metavar="FILE.jsonl", help="write the rows of every group there")
    suggest.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.rows < 1:
        raise UsageError(f"--rows {arguments.rows}: at least one row of each file must be scored")
    if absent := [path for path in arguments.prompts if not path.is_file()]:
        raise UsageError(f"--prompts {absent[0]}: there is no such file")
    store = places.open_store(arguments)
    bundle = places.bundle_of(store, arguments.bundle)[2]
    from bs_cluster.campaign.gaps import find_gaps  # noqa: PLC0415  # torch; wrong usage is told first

    found = find_gaps(store, bundle, arguments.prompts, arguments.rows, arguments.device, _say)
    if arguments.out is not None:
        arguments.out.write_text("".join(_lines(found)))
    output.show(found.to_dict(), _told(found, arguments.out))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _lines(found: Gaps) -> list[str]:
    """A line of JSON for each row of each group, which a source of rows can be: ``where: {gap: "1"}``."""
    return [
        json.dumps({"gap": str(number), **row.to_dict()}, ensure_ascii=False) + "\n"
        for number, gap in enumerate(found.gaps, start=1)
        for row in gap.rows
    ]


def _told(found: Gaps, out: Path | None) -> str:
    lines = [
        f"bundle {found.bundle} of {found.campaign}: {found.poor} of {found.rows} rows are served poorly, "
        f"{sum(len(gap.rows) for gap in found.gaps)} of them in {len(found.gaps)} groups"
    ]
    for number, gap in enumerate(found.gaps, start=1):
        lines += _gap_words(number, gap)
    if found.gaps:
        lines.append("losses in nats per completion token; promises in nats over all of a group's tokens")
    if found.gaps and out is not None:
        lines.append(f'{out} has the rows; a source that reads one group: path: {out}, where: {{gap: "1"}}')
    return "\n".join(lines)


def _gap_words(number: int, gap: Gap) -> list[str]:
    served = gap.loss("served")
    losses = f"base {gap.loss('base'):.3f}, best {gap.loss('best'):.3f}"
    losses += "" if served is None else f", served {served:.3f}"
    owners = ", ".join(f"{count} of {owner}" for owner, count in gap.owners.items())
    nearest = [" ".join(row.prompt.split())[:WIDTH] for row in gap.rows[:NEAREST]]
    return [
        f"gap {number}: {len(gap.rows)} rows ({owners}); {losses}; a domain of their own promises {gap.promise:.0f}",
        f"  words: {', '.join(gap.words) or 'none stands in two prompts'}",
        *(f"  {prompt}" for prompt in nearest),
    ]
