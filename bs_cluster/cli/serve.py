"""Serve a campaign's champion over HTTP as OpenAI's API does, with gates beside, and a page to try it. One process,
no cluster; requests under different gates share a batch. Another champion is served as soon as the store has it, and
SIGTERM lets running answers end."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from bs_cluster.cli import places
from bs_cluster.cli.output import Output
from bs_cluster.errors import UsageError

HELP = "serve a bundle over HTTP: OpenAI's API, and a chat page"
KEY_VARIABLE = "BS_CLUSTER_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


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
    parser.add_argument("--max-running", **number, default=16, help="requests that share a batch (default: 16)")
    parser.add_argument("--max-waiting", **number, default=64, help="requests in line; one more gets 429 (default: 64)")
    parser.add_argument(
        "--max-prompt-tokens",
        **number,
        help="a longer prompt gets 400 (default: the campaign's data.max_prompt_length)",
    )
    parser.add_argument("--max-tokens", **number, default=512, help="tokens of an answer at most (default: 512)")
    parser.add_argument("--reload-every", **seconds, default=10.0, help="look for another champion (default: 10)")
    parser.add_argument("--drain", **seconds, default=60.0, help="running answers have after SIGTERM (default: 60)")
    parser.add_argument("--log-prompts", action="store_true", help="log prompts and answers; never without this")


def run(arguments: argparse.Namespace, output: Output) -> int:
    for name in ("max_running", "max_prompt_tokens", "max_tokens", "reload_every"):
        if (value := getattr(arguments, name)) is not None and value <= 0:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be more than 0")
    if arguments.max_waiting < 0 or arguments.drain < 0:
        raise UsageError("--max-waiting and --drain must be 0 or more")
    keys = api_keys(arguments)
    if not keys and arguments.host not in LOOPBACK:
        raise UsageError(
            f"--host {arguments.host} lets in whoever reaches it: name --api-key-file or set {KEY_VARIABLE}"
        )
    store = places.open_store(arguments)
    places.bundle_of(store, arguments.bundle)
    from bs_cluster.serving import server  # noqa: PLC0415  # torch and a model; wrong usage is told first

    settings = server.Settings(
        host=arguments.host,
        port=arguments.port,
        device=arguments.device,
        bundle=arguments.bundle,
        keys=keys,
        max_running=arguments.max_running,
        max_waiting=arguments.max_waiting,
        prompt_tokens=arguments.max_prompt_tokens,
        answer_tokens=arguments.max_tokens,
        reload_s=arguments.reload_every,
        drain_s=arguments.drain,
        log_prompts=arguments.log_prompts,
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("bs_cluster").setLevel(logging.INFO)
    listening = server.listen(settings.host, settings.port)
    service = server.load(store, settings)
    listening.listen()  # what is said next is true: whoever connects from now on is answered
    host, port = listening.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    output.show({"url": url, "models": list(service.catalogue.models)}, f"serving {store.campaign} at {url}")
    server.run(service, settings, listening)
    return 0


def api_keys(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Keys of the file that is named, else of the environment. Raises UsageError for a file without any."""
    if not arguments.api_key_file:
        return tuple(filter(None, [os.environ.get(KEY_VARIABLE, "").strip()]))
    try:
        lines = Path(arguments.api_key_file).read_text().splitlines()
    except OSError as error:
        raise UsageError(f"--api-key-file {arguments.api_key_file}: {error.strerror}") from error
    if not (keys := tuple(line.strip() for line in lines if line.strip())):
        raise UsageError(f"--api-key-file {arguments.api_key_file} holds no key; write one a line")
    return keys
