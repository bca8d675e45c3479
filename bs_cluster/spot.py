"""Beside Ray on a machine that its platform may take: watches for the notice, and drains the node in Ray.

    python -m bs_cluster.spot aws      # a spot instance of EC2: two minutes' notice
    python -m bs_cluster.spot gcp      # a spot machine of Google Cloud: half a minute
    python -m bs_cluster.spot now --seconds 60 --wait      # the notice is this call, as in a pod's preStop hook

Ray's autoscaler does not look for such notices. A node that drains takes no new work, and training workers on it are
told: they write a checkpoint of the round under way and go on from it elsewhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil

POLL_EVERY_S = 5.0
ANSWER_TIMEOUT_S = 2.0
TOKEN_LIFE_S = 300
WORKER = "ray::RayTrainWorker"
METADATA = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}
GCP_NOTICE_S = 30.0


def aws_notice(metadata: str) -> float | None:
    """Seconds until EC2 takes this instance; None: it has not said so (IMDSv2)."""
    life = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFE_S)}
    token = answer(f"{metadata}/latest/api/token", life, method="PUT")
    told = answer(f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token or ""})
    if told is None:
        return None
    taken_at = datetime.strptime(json.loads(told)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return max(0.0, (taken_at - datetime.now(UTC)).total_seconds())


def gcp_notice(metadata: str) -> float | None:
    """Seconds until Google Cloud takes this machine; None: it has not said so."""
    told = answer(f"{metadata}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GCP_NOTICE_S if told == "TRUE" else None


NOTICES: dict[str, Callable[[str], float | None]] = {"aws": aws_notice, "gcp": gcp_notice}


def answer(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """What the metadata server says; None for "not found". Raises URLError where it does not answer."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers, method=method), timeout=ANSWER_TIMEOUT_S
        ) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def wait_for_notice(platform: str, metadata: str) -> float:
    """Seconds that are left when the platform gives notice. A metadata server that does not answer is asked again."""
    silent = False
    while True:
        try:
            seconds = NOTICES[platform](metadata)
        except (OSError, ValueError, KeyError) as error:  # URLError is an OSError
            if not silent:
                print(
                    f"{metadata} gives no answer to go by ({error}); asked again every {POLL_EVERY_S:g} s", flush=True
                )
            silent, seconds = True, None
        if seconds is not None:
            return seconds
        time.sleep(POLL_EVERY_S)


def own_raylet() -> tuple[str, str]:
    """The address of the cluster and the id of the node that run on this machine. Raises LookupError without one."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        flags = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if "--node-id" in flags and "--gcs-address" in flags:  # Ray's agent, which every node has one of
            return flags["--gcs-address"], flags["--node-id"]
    raise LookupError("no raylet runs on this machine; start this beside `ray start`")


def drain(address: str, node: str, seconds: float, why: str) -> int:
    """Exit code of Ray's own command; what it says is printed."""
    command = [str(Path(sys.executable).parent / "ray"), "drain-node", f"--address={address}", f"--node-id={node}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", f"--reason-message={why}"]
    return subprocess.run([*command, f"--deadline-remaining-seconds={seconds:.0f}"], check=False).returncode


def workers_here() -> bool:
    return any((process.info["cmdline"] or [""])[0].startswith(WORKER) for process in psutil.process_iter(["cmdline"]))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bs_cluster.spot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("platform", choices=(*NOTICES, "now"))
    parser.add_argument("--seconds", type=float, default=60.0, help="with now: how long the node stays")
    parser.add_argument(
        "--wait", action="store_true", help="return when no training worker is left here, or it is over"
    )
    parser.add_argument("--metadata", help="the metadata server's address, where it is not the platform's own")
    parser.add_argument(
        "--address", help="of the cluster, and --node-id: where not those of the raylet on this machine"
    )
    parser.add_argument("--node-id")
    arguments = parser.parse_args()
    if arguments.platform == "now":
        seconds = arguments.seconds
    else:
        seconds = wait_for_notice(arguments.platform, arguments.metadata or METADATA[arguments.platform])
    over = time.monotonic() + seconds
    address, node = arguments.address, arguments.node_id
    if address is None or node is None:
        address, node = own_raylet()
    print(f"this node is taken in {seconds:.0f} s; it drains", flush=True)
    code = drain(address, node, seconds, f"{arguments.platform} takes the machine")
    while arguments.wait and workers_here() and time.monotonic() < over:
        time.sleep(1.0)
    return code


if __name__ == "__main__":
    sys.exit(main())
