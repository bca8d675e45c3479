"""What a node says of itself. It runs on that node, as an actor of Ray's or in this process, and decides nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import HfApi

import bs_cluster
from bs_cluster.base.packaged import EMBEDDED
from bs_cluster.base.prepare import built_folder, prepare_base
from bs_cluster.config.schema import BaseSection, CampaignConfig
from bs_cluster.config.sources import EmbeddedSource, FileSource, HubSource, ReasoningGymSource, SourceSection
from bs_cluster.data.builtin import check_packages
from bs_cluster.errors import BrainstacksError
from bs_cluster.records import Record, sha256_hex
from bs_cluster.store.store import Store

PACKAGES = ("torch", "ray", "deepspeed", "transformers", "bitsandbytes", "peft")
OURS = ("ray", "raylet", "gcs_server", "bs_cluster", "mlflow")  # words of a command line that is ours


@dataclass(frozen=True)
class Facts(Record):
    """``code`` digests our package's files. ``token`` digests the token that this node's processes hold, empty without
    one. ``open_ports`` are those of ours that listen on all interfaces. ``troubles`` hold what a check found, by its
    name: ``store``, ``base``, ``data``, ``compiler``; no entry means that all is well."""

    node: str
    versions: dict[str, str]
    code: str
    cpus: int
    gpus: int
    free_disk: int
    token: str
    open_ports: tuple[int, ...]
    troubles: dict[str, str]


class Node:
    """Asks one node. ``marker`` is the folder of the store's scratch space in which the driver left its word."""

    def __init__(self, config: dict[str, Any], marker: str):
        self.config, self.marker = CampaignConfig.model_validate(config), marker

    def now(self) -> float:
        return time.time()

    def facts(self) -> Facts:
        config, gpu = self.config, self.config.training.use_gpu
        checks: dict[str, Callable[[], None]] = {
            "store": lambda: check_store(config, self.marker),
            "base": lambda: check_base(config.base),
            "data": lambda: check_data(config),
            "compiler": lambda: check_compiler(gpu),
        }
        return Facts(
            node=socket.gethostname(),
            versions={"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            code=code_digest(),
            cpus=os.cpu_count() or 1,
            gpus=seen_gpus(),
            free_disk=free_disk(Path(config.base.cache_dir).expanduser()),
            token=token_digest(),
            open_ports=open_ports(),
            troubles={name: told for name, check in checks.items() if (told := _trouble(check))},
        )


def _trouble(check: Callable[[], None]) -> str:
    try:
        check()
    except (BrainstacksError, OSError, ValueError) as error:
        return " ".join(str(error).split())[:400]
    return ""


def check_store(config: CampaignConfig, marker: str) -> None:
    """Whether this node writes to the store, creates what is absent alone, and sees what the driver wrote."""
    store = Store(config.store.uri, config.campaign)
    store.probe()
    if marker not in store.round_area(marker).names():
        raise ValueError(
            f"store.uri = {store.uri} is another folder here than on the driver's node; mount one that all nodes "
            "share, or name a bucket"
        )


def check_base(base: BaseSection) -> None:
    """Whether the base can be had here; no weight is loaded."""
    kind, _, name = base.model.partition(":")
    if kind == "embedded":
        built = built_folder(base)
        if built is None or not built.is_dir():
            EMBEDDED[name].require(base.model)
        return
    if kind == "random":  # it needs nothing
        return
    found = prepare_base(base)
    if Path(found).is_dir():
        if not any(Path(found).glob("*.safetensors")):
            raise ValueError(f"base.model = {base.model}: the folder holds no safetensors here; copy them to this node")
        for file in Path(found).glob("*.safetensors"):
            file.open("rb").close()
        return
    HfApi().model_info(found, revision=base.revision, timeout=20)


def check_data(config: CampaignConfig) -> None:
    """Whether every source can be read here."""
    for source in config.sources().values():
        _check_source(source)


def _check_source(source: SourceSection) -> None:
    match source:
        case FileSource():
            files = source.files()
            if not files:
                raise ValueError(f"{source.path}: no file matches here; put the data on a path that all nodes share")
            for file in files:
                open(file, "rb").close()
        case HubSource(name=name) if not Path(name).is_dir():
            HfApi().dataset_info(name, timeout=20)
        case EmbeddedSource(name=name):
            check_packages(name)
        case ReasoningGymSource():
            check_packages("reasoning")
        case _:
            pass


def check_compiler(gpu: bool) -> None:
    """Triton compiles what starts its kernels at their first use."""
    if gpu and shutil.which("gcc") is None:
        raise ValueError("gcc not found, which Triton compiles with; install it on this node")


def code_digest() -> str:
    """Of every Python file of our package, by path."""
    root = Path(bs_cluster.__file__).parent
    lines = [f"{file.relative_to(root)} {sha256_hex(file.read_bytes())}" for file in sorted(root.rglob("*.py"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def free_disk(folder: Path) -> int:
    """Bytes free where the base and copies of stacks will lie."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def seen_gpus() -> int:
    """That the driver lists: Ray hides them from a process that asked for none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return torch.cuda.device_count()
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=False).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def token_digest() -> str:
    """A few digits of the digest of the token that Ray's processes here present; empty where they ask for none."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return ""
    token = os.environ.get("RAY_AUTH_TOKEN")
    if token is None:
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        token = file.read_text().strip() if file.is_file() else ""
    return sha256_hex(token.encode())[:8] if token else ""


def open_ports() -> tuple[int, ...]:
    """Ports of processes of ours that listen on every interface; those of other users cannot be seen."""
    found = set()
    for connection in psutil.net_connections("inet"):
        address: Any = connection.laddr
        if connection.status == psutil.CONN_LISTEN and address.ip in ("0.0.0.0", "::") and connection.pid:
            try:
                words = " ".join(psutil.Process(connection.pid).cmdline())
            except psutil.Error:  # it ended meanwhile
                continue
            if any(word in words for word in OURS):
                found.add(address.port)
    return tuple(sorted(found))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
