"""Public tasks on a campaign's bundle by lm-evaluation-harness, three ways side by side: the base, all domains on
(ungated), and routed, where the meta-router decides by the prompt alone, as it is served. Choices are scored over all
their tokens. Values come with standard errors, differences to the base are paired by row. Rows like those that the
campaign was trained on are left out. ``--files FOLDER`` holds rows, ``<task>.jsonl``, and definitions of one's own; a
task without rows there is read from the Hub. Writes evaluation.json and evaluation.md beside the campaign's report, and
into MLflow where the campaign has one."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from bs_cluster.cli import places, registry
from bs_cluster.cli.output import Output, table
from bs_cluster.errors import RegistryError, UsageError

if TYPE_CHECKING:
    from bs_cluster.evaluation.record import Evaluation
    from bs_cluster.records import BundleManifest
    from bs_cluster.store import Store

HELP = "public tasks by lm-evaluation-harness: base, ungated and routed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    places.add_campaign(parser)
    parser.add_argument("--bundle", type=int, metavar="N", help="bundle N (default: the champion)")
    parser.add_argument("--tasks", required=True, metavar="TASK,…", help="by lm-eval's names, or your own of --files")
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="rows as <task>.jsonl, definitions as YAML")
    parser.add_argument("--domains", metavar="DOMAIN,…", help="a fourth way: these at full strength")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N rows of each task (default: all)")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="solved examples first (default: the task's)")
    parser.add_argument("--template", action="store_true", help="ask in the campaign's template, as it is served")
    parser.add_argument("--batch-tokens", type=int, default=4096, metavar="N", help="in memory at once (default: 4096)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    registry.add_tracking(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    for option, least in (("limit", 1), ("num_fewshot", 0), ("batch_tokens", 1)):
        given = getattr(arguments, option)
        if given is not None and given < least:
            raise UsageError(f"--{option.replace('_', '-')} {given}: it must be at least {least}")
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError("lm-evaluation-harness is not installed: pip install 'bs-cluster[evaluate]'")
    store = places.open_store(arguments)
    bundle = places.bundle_of(store, arguments.bundle)[2]
    domains = _listed(arguments.domains or "")
    if unknown := sorted(set(domains) - set(bundle.domains)):
        raise UsageError(f"domain {unknown[0]!r} is not in the bundle; it has {', '.join(bundle.domains)}")
    from bs_cluster.evaluation.tasks import load_tasks  # noqa: PLC0415  # torch, lm-eval; wrong usage is told first

    with redirect_stdout(sys.stderr):  # what libraries print
        tasks = load_tasks(_listed(arguments.tasks), arguments.files, arguments.num_fewshot)
        from bs_cluster.evaluation.run import Wanted, evaluate  # noqa: PLC0415
        from bs_cluster.serving.runtime import BundleRuntime  # noqa: PLC0415

        wanted = Wanted(tasks, domains, arguments.limit, arguments.template, arguments.batch_tokens)
        found = evaluate(BundleRuntime(store, bundle, arguments.device), store, bundle, wanted, _say)
    kept = _keep(found, store, bundle, arguments)
    output.show(found.to_dict(), _told(found, kept))
    return 0


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _keep(found: Evaluation, store: Store, bundle: BundleManifest, arguments: argparse.Namespace) -> Path:
    """Writes the files and logs them; where MLflow is away, that is said and the files are there all the same."""
    from bs_cluster.evaluation.page import write_page  # noqa: PLC0415  # matplotlib
    from bs_cluster.report.folder import report_folder  # noqa: PLC0415
    from bs_cluster.store.bundle_config import bundle_config  # noqa: PLC0415

    folder = report_folder(store.uri, store.campaign, bundle_config(store, bundle).base.cache_dir)
    write_page(found, folder)
    tracking = registry.tracking_of(arguments, store)
    if tracking is None:
        _say("no MLflow is named, and none lies beside the store: nothing was logged there (--tracking-uri URI)")
        return folder
    from bs_cluster.registry import Registry  # noqa: PLC0415  # MLflow takes seconds to import

    uri, experiment = tracking
    try:
        with tempfile.TemporaryDirectory() as scratch:
            write_page(found, Path(scratch))
            Registry(uri, store.campaign, experiment, _say).log_evaluation(found.bundle, found.metrics, Path(scratch))
    except RegistryError as error:
        _say(f"not logged: {error}")
    return folder


def _told(found: Evaluation, folder: Path) -> str:
    from bs_cluster.evaluation.page import PAGE, header, lines, notes  # noqa: PLC0415

    return "\n".join([table(header(found), lines(found)), *notes(found), f"kept in {folder / PAGE}"])
