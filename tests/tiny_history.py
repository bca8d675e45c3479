"""Tiny committed histories for tests of the store, of MLflow and of what is built on them: real stack files of a few
numbers, real manifests, no model.

    store = Store(str(tmp_path), "demo")
    ref = commit_round(store, tmp_path / "staged", "chat", 1)
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file

from bs_cluster.answer_file import ANSWERS, write_answers
from bs_cluster.promotion import LOSSES, write_losses
from bs_cluster.records import (
    SCHEMA_VERSION,
    BaseRef,
    BundleManifest,
    DomainRecord,
    JudgedAnswer,
    ModeLosses,
    Probe,
    ProbedRow,
    RoundOutcome,
    Spread,
    StackId,
    StackManifest,
    StackRef,
)
from bs_cluster.store import Store, stage_entries

BASE = BaseRef(model="tiny", digest="b" * 64, quantization="none")
SITES = ("base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.model.layers.0.mlp.up_proj")
FIRST = StackId("chat", 1)
E, R, I, O = 2, 3, 4, 5  # noqa: E741 - the project's shape letters


def stack_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"stack_A": (E, R, I), "stack_B": (E, R, O), "stack_router": (E, I), "stack_noise": (E, I)}
    return {
        f"{site}.{kind}": torch.randn(shape, generator=generator) for site in SITES for kind, shape in shapes.items()
    }


def write_files(
    folder: Path,
    seed: int = 0,
    steps: int = 3,
    tensors: dict[str, torch.Tensor] | None = None,
    stack: StackId = FIRST,
    position: int = 0,
) -> Path:
    """Stage a stack: adapter config, weights and a learning curve of ``steps`` points."""
    config = {"peft_type": "BRAINSTACK", "rank": R, "domain": stack.domain, "round": stack.round, "position": position}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stack_tensors(seed) if tensors is None else tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    rows = ({"step": step, "loss": 3.0 / (step + 1), "lr": 1e-4} for step in range(steps))
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def stack_manifest(store: Store, folder: Path, domain: str, number: int, position: int = 0) -> StackManifest:
    parents = tuple(ref for ref, _ in store.stacks())
    return StackManifest(
        schema_version=SCHEMA_VERSION,
        campaign=store.campaign,
        stack=StackId(domain, number),
        position=position,
        parents=parents,
        context=tuple(ref.stack for ref in parents),
        base=BASE,
        config_digest="c" * 64,
        data_fingerprint="d" * 64,
        basis=None,
        files=stage_entries(folder),
        metrics={"val_before": 3.0 - 0.5 * (number - 1), "val_after": 2.5 - 0.5 * (number - 1), "rows": 16.0},
        code_version="test",
    )


def commit_round(store: Store, staging: Path, domain: str, number: int, position: int = 0, steps: int = 3) -> StackRef:
    """Stage and commit one round; its parents are all stacks committed so far."""
    seed, stack = 100 * position + number, StackId(domain, number)
    folder = write_files(staging / stack.name, seed, steps, stack=stack, position=position)
    return store.commit_stack(stack_manifest(store, folder, domain, number, position), folder)


def domain_record(store: Store, domain: str, position: int = 0, rejected: int = 0) -> DomainRecord:
    """The closing statement of a domain with its committed rounds and, after them, ``rejected`` more."""
    refs = [ref for ref, _ in store.stacks() if ref.stack.domain == domain]
    rounds = [RoundOutcome(ref.stack, 3.0, 2.5, 0.5, 0.1, 2, True, ref.manifest, 3, 0, 1.5, "improved") for ref in refs]
    for number in range(len(refs) + 1, len(refs) + 1 + rejected):
        stack = StackId(domain, number)
        rounds.append(RoundOutcome(stack, 2.5, 2.6, -0.1, 0.1, 2, False, None, 3, 1, 1.5, "no improvement"))
    return DomainRecord(
        schema_version=SCHEMA_VERSION,
        domain=domain,
        position=position,
        rounds=tuple(rounds),
        basis=None,
        basis_rank_mean=2.0,
        isolated=2.5,
        base_loss=3.0,
        row_losses=(2.4, 2.6),
        probe=Probe((ProbedRow(f"{domain}-0", "a" * 64, 2.4),), {"torch": "tiny"}),
        matrix={domain: {"base": 3.0, "isolated": 2.5, "ungated": 2.5}},
        capacity={"5": 0.4},
        energy_held={"input": Spread(0.95, 0.8, SITES[0])},
        overlap={},
        overlap_claimed={},
        foreign={},
        abroad={},
        span=None,
        data_fingerprint="d" * 64,
        rows=store.put_bytes("rows.parquet", b"the rows of " + domain.encode()).sha256,
        data_counts={"train": 30, "validation": 10},
        seconds=12.0,
    )


def routed_losses(means: dict[str, float], rows: int = 12) -> ModeLosses:
    """``rows`` rows of ten tokens for each owner, all of them served with its mean loss."""
    owners = tuple(owner for owner in means for _ in range(rows))
    ids = tuple(f"{owner}-{row}" for owner in means for row in range(rows))
    return ModeLosses(ids, owners, (10,) * len(ids), {"routed": tuple(10 * means[owner] for owner in owners)})


def answered_rows(losses: ModeLosses, number: int, rows: int) -> tuple[ModeLosses, list[JudgedAnswer]]:
    """The losses with those of the base and gates of two domains, and answers to the first ``rows`` rows of each owner:
    the base is wrong, bundle ``number`` is right on as many."""
    count, seen, answers = len(losses.row_ids), Counter[str](), []
    for row, owner in zip(losses.row_ids, losses.owners, strict=True):
        seen[owner] += 1
        if seen[owner] > rows:
            continue
        prompt, reference = f"What is the capital of {row}?", f"the capital of {row}"
        for mode, gates in (("base", (0.0, 0.0)), ("routed", (0.9, 0.25))):
            right = mode == "routed" and seen[owner] <= number
            text = reference if right else f"{mode} {number} does not know"
            answers.append(JudgedAnswer(row, owner, mode, gates, prompt, reference, text, right))
    nll = {"base": (30.0,) * count, **losses.nll}
    gates = {"chat": (0.9,) * count, "math": (0.25,) * count}
    return ModeLosses(losses.row_ids, losses.owners, losses.tokens, nll, gates), answers


def bundle_manifest(
    store: Store, number: int = 1, served: dict[str, float] | None = None, answered: int = 0
) -> BundleManifest:
    """A bundle of every committed stack, with a report and a stand-in for the router's weights already in the store.

    ``served`` gives it losses by row as well: the mean of each owner, on a dozen rows of its own; ``answered`` of them
    were answered in words.
    """
    refs = tuple(ref for ref, _ in store.stacks())
    report = {"key_metrics": {"loss/routed/chat": 1.5, "regret/router": 0.01 * number}, "loss": {"base": {"chat": 3.0}}}
    files = {
        "router.json": json.dumps({"bundle": number}).encode(),
        "report.json": json.dumps(report).encode(),
        "report.md": f"# Report {number}\n".encode() + b"x" * 10_000,
    }
    if served is not None:
        losses = routed_losses(served)
        if answered:
            losses, answers = answered_rows(losses, number, answered)
            files[ANSWERS] = write_answers(answers)
        files[LOSSES] = write_losses(losses)
    return BundleManifest(
        schema_version=SCHEMA_VERSION,
        campaign=store.campaign,
        number=number,
        base=BASE,
        domains=tuple(dict.fromkeys(ref.stack.domain for ref in refs)),
        stacks=refs,
        files=tuple(store.put_bytes(name, data) for name, data in files.items()),
        metrics={"regret": 0.01},
    )


def close_after(store: Store, folder: Path, domain: str, rounds: int, position: int) -> None:
    """Commits this many rounds of a domain, staged in ``folder``, and closes it."""
    for number in range(1, rounds + 1):
        commit_round(store, folder, domain, number, position)
    store.close_domain(domain_record(store, domain, position))
