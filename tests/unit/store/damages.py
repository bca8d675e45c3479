"""Random damages to a finished store: what a disk, a hand or a forger may do to any one of its files.

Each is a function of the campaign's folder, a path in it and a random draw; it returns what it did, in words. The
``twin`` is another finished history under the same names: where older and foreign, but valid, content comes from.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from bs_cluster.records import canonical_json, sha256_hex
from bs_cluster.store.blobs import blob_name

Damage = Callable[[Path, Path, random.Random, Path], str]


def flip(root: Path, path: Path, draw: random.Random, twin: Path) -> str:
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data))
    data[place] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return f"a bit of byte {place}"


def cut(root: Path, path: Path, draw: random.Random, twin: Path) -> str:
    data = path.read_bytes()
    keep = draw.randrange(len(data))
    path.write_bytes(data[:keep])
    return f"to {keep} bytes"


def zero(root: Path, path: Path, draw: random.Random, twin: Path) -> str:
    data = bytearray(path.read_bytes())
    start = draw.randrange(len(data))
    end = min(len(data), start + draw.choice([1, 16, 512, 10**6]))
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    return f"bytes {start} to {end}"


def swap(root: Path, path: Path, draw: random.Random, twin: Path) -> str:
    other = draw.choice([file for file in files(root) if file != path])
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)
    return f"with {other.relative_to(root)}"


def delete(root: Path, path: Path, draw: random.Random, twin: Path) -> str:
    gone = draw.choice([path, path, path, path.parent])
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink()
    return str(gone.relative_to(root))


def plant(root: Path, path: Path, draw: random.Random, twin: Path) -> str:
    """Beside what is there, under a name that a careless reader might take."""
    name = draw.choice(
        [f"{path.name}~", f".{path.name}.swp", "pytorch_model.bin", "01.json", "99.json", "../x.json", "f" * 64, "a\nb"]
    )
    target = path.parent / name
    what = draw.choice(["its content", "a pickle", "a folder", "a pipe"])
    if target.exists():
        return "nothing"
    if what == "a folder":
        target.mkdir()
    elif what == "a pipe":
        os.mkfifo(target)
    else:
        target.write_bytes(path.read_bytes() if what == "its content" else b"\x80\x04K\x01.")
    return f"{what} as {name!r}"


def link(root: Path, path: Path, draw: random.Random, twin: Path) -> str:
    target = draw.choice(["/dev/zero", "/etc/passwd", "other", "hard", "pipe", "loop", "folder", "nowhere"])
    other = draw.choice([file for file in files(root) if file != path])
    path.unlink()
    if target == "pipe":
        os.mkfifo(path)
    elif target == "folder":
        path.mkdir()
    elif target == "hard":
        os.link(other, path)
    else:
        path.symlink_to({"other": other, "loop": path, "nowhere": root / "nowhere"}.get(target, target))
    return f"to {target}"


def rollback(root: Path, path: Path, draw: random.Random, twin: Path) -> str:
    """What was valid once: the twin's blobs, and one ref or entry of it in place of ours."""
    shutil.copytree(twin / "blobs", root / "blobs", dirs_exist_ok=True)
    ours = [file for file in files(root) if (twin / file.relative_to(root)).exists() and "blobs" not in file.parts]
    name = (path if path in ours else draw.choice(ours)).relative_to(root)
    (root / name).write_bytes((twin / name).read_bytes())
    return f"{name} of another time"


def forged(root: Path, path: Path, draw: random.Random, twin: Path) -> str:
    """A ref, its manifest and the manifest's own digest, all at one with each other, none of it committed."""
    ref = draw.choice([*sorted((root / "refs").rglob("stacks/*/*.json")), root / "refs/bundles/1.json"])
    content = json.loads(ref.read_bytes())
    manifest = json.loads((root / blob_name(content["manifest"])).read_bytes())
    change = draw.choice(["metrics", "schema_version", "campaign", "files", "base", "code_version"])
    manifest[change] = {
        "metrics": {"val_after": draw.random()},
        "schema_version": draw.choice([0, 2, "1", None, True]),
        "campaign": "other",
        "files": manifest["files"][1:],
        "base": {**manifest["base"], "digest": "e" * 64},
        "code_version": ["1"],
    }[change]
    data = canonical_json(manifest)
    blob = root / blob_name(sha256_hex(data))
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(data)
    ref.write_bytes(canonical_json({**content, "manifest": sha256_hex(data)}))
    return f"{change} of {ref.relative_to(root)}"


DAMAGES: tuple[Damage, ...] = (flip, cut, zero, swap, delete, plant, link, rollback, forged)


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())
