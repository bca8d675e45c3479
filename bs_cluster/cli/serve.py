"""Serve a campaign's champion over HTTP as OpenAI's API does, with gates beside, and a page to try it. One process,
no cluster, or with --replicas as many on a Ray cluster; requests under different gates share a batch. Another champion
is served as soon as the store has it, and SIGTERM lets running answers end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bs_cluster.cli import places
from bs_cluster.cli.output import Output
from bs_cluster.errors import UsageError
from bs_cluster.quiet import say_on_stderr
from bs_cluster.serving.settings import KEY_VARIABLE, LOOPBACK, Settings, keys_of_environment

if TYPE_CHECKING:
    from bs_cluster.store import Store

HELP = "serve a bundle over HTTP: OpenAI's API, and a chat page"
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
SETTINGS = (
    "device",
    "bundle",
    "max_running",
    "max_waiting",
    "max_prompt_tokens",
    "max_tokens",
    "resident_bytes",
    "reload_every",
    "drain",
    "log_prompts",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    places.add_campaign(parser)
    number = {"type": int, "metavar": "N"}
    seconds = {"type": float, "metavar": "S"}
    parser.add_argument("--bundle", **number, help="bundle N, whoever becomes champion (default: the champion)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 for a free one (default: 8000)")
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help=f"API keys that are let in, a line each (default: ${KEY_VARIABLE}, if set)",
    )
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a name that requests may be sent to; again for more (default: any with a key, else this machine's own)",
    )
    parser.add_argument(
        "--replicas",
        metavar="N[:M]",
        type=least_and_most,
        help="on the Ray cluster at hand: N replicas, or from N to M as requests come (default: this process, no Ray)",
    )
    parser.add_argument(
        "--cpus-per-replica", type=float, metavar="N", default=1.0, help="which Ray keeps for each (default: 1)"
    )
    parser.add_argument("--max-running", **number, default=16, help="requests that share a batch (default: 16)")
    parser.add_argument("--max-waiting", **number, default=64, help="requests in line; one more gets 429 (default: 64)")
    parser.add_argument(
        "--max-prompt-tokens",
        **number,
        help="a longer prompt gets 400 (default: the campaign's data.max_prompt_length)",
    )
    parser.add_argument("--max-tokens", **number, default=512, help="tokens of an answer at most (default: 512)")
    parser.add_argument(
        "--resident-bytes",
        type=size,
        metavar="SIZE",
        help="of stacks in memory, such as 2G; the others are read when they are to fire (default: all are there)",
    )
    parser.add_argument("--reload-every", **seconds, default=10.0, help="look for another champion (default: 10)")
    parser.add_argument("--drain", **seconds, default=60.0, help="running answers have after SIGTERM (default: 60)")
    parser.add_argument("--log-prompts", action="store_true", help="log prompts and answers; never without this")


def run(arguments: argparse.Namespace, output: Output) -> int:
    keys = api_keys(arguments)
    if not keys and arguments.host not in LOOPBACK:
        raise UsageError(
            f"--host {arguments.host} lets in whoever reaches it: name --api-key-file or set {KEY_VARIABLE}"
        )
    own = {"keys": keys, "hosts": hosts(arguments, keys)}
    settings = Settings(**own, **{name: getattr(arguments, name) for name in SETTINGS})
    store = places.open_store(arguments)
    places.bundle_of(store, arguments.bundle)
    say_on_stderr()
    if arguments.replicas:
        return run_replicas(arguments, store, settings, output)
    # A model and torch; wrong usage is told first.
    from bs_cluster.serving import server  # noqa: PLC0415
    from bs_cluster.serving.champion import load  # noqa: PLC0415
    from bs_cluster.serving.metrics import Metrics, Prometheus  # noqa: PLC0415

    listening = server.listen(arguments.host, arguments.port)
    service = load(store, settings, Metrics(Prometheus()))
    listening.listen()  # what is said next is true: whoever connects from now on is answered
    host, port = listening.getsockname()[:2]
    show(output, store.campaign, host, port)
    server.run(service, listening, settings.drain)
    return 0


def run_replicas(arguments: argparse.Namespace, store: Store, settings: Settings, output: Output) -> int:
    if arguments.port == 0:
        raise UsageError("--port 0: every node listens on the same one; name it")
    from bs_cluster.replicas.application import Replicas  # noqa: PLC0415  # Ray
    from bs_cluster.replicas.run import serve_replicas  # noqa: PLC0415

    least, most = arguments.replicas
    replicas = Replicas(least, most, arguments.cpus_per_replica)
    ready = partial(show, output, store.campaign, arguments.host, arguments.port)
    serve_replicas(store, settings, arguments.host, arguments.port, replicas, ready)
    return 0


def show(output: Output, campaign: str, host: str, port: int) -> None:
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    output.show({"url": url, "campaign": campaign}, f"serving {campaign} at {url}")


def least_and_most(words: str) -> tuple[int, int]:
    """``2`` or ``1:4``."""
    least, _, most = words.partition(":")
    try:
        bounds = int(least), int(most or least)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{words!r} is neither N nor N:M") from error
    if not 1 <= bounds[0] <= bounds[1]:
        raise argparse.ArgumentTypeError(f"{words!r}: at least 1, and no fewer at most than at least")
    return bounds


def size(words: str) -> int:
    """``3000000``, ``512M`` or ``2G``, in powers of 1,024."""
    number, unit = (words[:-1], words[-1]) if words[-1:] in UNITS else (words, "")
    try:
        return int(float(number) * UNITS.get(unit, 1))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{words!r} is no size; say 3000000, 512M or 2G") from error


def hosts(arguments: argparse.Namespace, keys: Sequence[str]) -> tuple[str, ...]:
    """The names that requests may be sent to. A key keeps strangers out by itself; without one, whatever page a browser
    of this machine shows could ask in its reader's stead, by a name of its own that it lets resolve to here."""
    named = arguments.allow_host
    return () if keys and not named else (*LOOPBACK, arguments.host, *named)


def api_keys(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Keys of the file that is named, else of the environment. Raises UsageError for a file without any."""
    if not arguments.api_key_file:
        return keys_of_environment()
    try:
        lines = Path(arguments.api_key_file).read_text().splitlines()
    except OSError as error:
        raise UsageError(f"--api-key-file {arguments.api_key_file}: {error.strerror}") from error
    if not (keys := tuple(line.strip() for line in lines if line.strip())):
        raise UsageError(f"--api-key-file {arguments.api_key_file} holds no key; write one a line")
    return keys
