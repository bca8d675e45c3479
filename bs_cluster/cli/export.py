"""Leave with what was made: a domain of a bundle as a folder that stands without this cluster. ``--form stack`` is all
its rounds in one PEFT adapter, as they were trained; ``lora`` a plain LoRA with the gates frozen at their mean, which
needs nothing of ours; ``merged`` a whole model in bf16. What was written is loaded again and scored on rows that no
stack was trained on; the loss beside that of base and stacks is printed and stands in the model card."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from bs_cluster.cli import places
from bs_cluster.cli.output import Output, table
from bs_cluster.errors import UsageError

if TYPE_CHECKING:
    from bs_cluster.export.hub import Upload
    from bs_cluster.export.record import Exported

HELP = "write a domain as a folder that stands alone: its stacks, a plain LoRA, a merged model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    places.add_campaign(parser)
    parser.add_argument("--bundle", type=int, metavar="N", help="bundle N (default: the champion)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--domain", metavar="DOMAIN", help="this domain at full strength")
    what.add_argument(
        "--gates", metavar="DOMAIN=WEIGHT,…", help="these domains at these weights, above 0 to 1 (lora, merged)"
    )
    parser.add_argument("--to", required=True, metavar="FOLDER", help="a folder that is new or empty")
    parser.add_argument("--form", choices=("stack", "lora", "merged"), default="stack", help="default: stack")
    parser.add_argument("--rank", type=int, metavar="N", help="compress a plain LoRA to this rank")
    parser.add_argument("--license", metavar="ID", help="for the card, as the Hub calls it (default: the base's)")
    parser.add_argument("--hub", metavar="USER/NAME", help="then upload it to the Hub, by the Hub's own client")
    parser.add_argument("--dry-run", action="store_true", help="with --hub: upload nothing, say what would go")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def run(arguments: argparse.Namespace, output: Output) -> int:
    gates = {arguments.domain: 1.0} if arguments.domain else gates_of(arguments.gates)
    folder = places.new_folder(arguments.to)
    if arguments.dry_run and not arguments.hub:
        raise UsageError("--dry-run is of an upload: name the repository with --hub")
    store = places.open_store(arguments)
    _, digest, bundle = places.bundle_of(store, arguments.bundle)
    from bs_cluster.export import hub  # noqa: PLC0415  # torch and a model, here and below; wrong usage is told first
    from bs_cluster.export.record import Wanted  # noqa: PLC0415
    from bs_cluster.export.run import export  # noqa: PLC0415
    from bs_cluster.export.source import read_source  # noqa: PLC0415

    source = read_source(store, bundle, digest, Wanted(arguments.form, gates, arguments.rank, arguments.license))
    if arguments.hub:
        hub.check_repo(arguments.hub)
        if not arguments.dry_run:
            hub.check_login()
    with redirect_stdout(sys.stderr):  # what libraries print: DeepSpeed, where it is installed, when a model is saved
        found = export(source, folder, arguments.device, print)
    upload = None
    if arguments.hub:
        message = f"{store.campaign}, bundle {bundle.number}: {arguments.domain or arguments.gates} as {arguments.form}"
        upload = hub.planned(folder, arguments.hub) if arguments.dry_run else hub.upload(folder, arguments.hub, message)
    value = {"folder": str(folder), **found.to_dict(), "upload": upload and upload.to_dict()}
    output.show(value, "\n".join(_told(found, folder, upload)))
    return 0


def gates_of(text: str) -> dict[str, float]:
    """``math=1,code=0.5`` as weights. Raises UsageError."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, given, number = part.strip().partition("=")
        try:
            weight = float(number) if given else 1.0
        except ValueError:
            weight = -1.0
        if not name or name in found or not 0 < weight <= 1:
            raise UsageError(f"--gates {text}: {part.strip()!r} is no domain with a weight above 0 to 1, once each")
        found[name] = weight
    return found


def _told(found: Exported, folder: Path, upload: Upload | None) -> list[str]:
    from bs_cluster.export.card import LOSSES_HEADER, losses_cells  # noqa: PLC0415  # the Hub's client

    rank = f" of rank {found.rank}" if found.rank else ""
    lines = [
        table(LOSSES_HEADER, [losses_cells(losses) for losses in found.losses]),
        "nats per completion token on rows that no stack was trained on, with 95 % intervals; differences are paired",
        f"{folder} holds {', '.join(found.gates)} as {found.form}{rank}, with its model card",
    ]
    if upload is not None:
        sizes = [(name, f"{size:,}") for name, size in upload.files.items()]
        done = f"uploaded to {upload.url}" if upload.url else f"nothing was uploaded; {upload.repo} would get this"
        lines += [table(("file", "bytes"), sizes), done]
    return lines
