"""The null space: three ways to a basis, and what keeping out of it costs a step.

Shapes: T tokens, N rows, O out_features, M rank rows of the domain, K basis rank.
"""

from __future__ import annotations

import time

import torch

from benchmarks.settings import Settings
from benchmarks.table import Table, Target
from benchmarks.timing import medians, peak_bytes, take_turns
from benchmarks.variants import our_stacks
from bs_cluster.basis import Basis
from bs_cluster.stacks.moments import Moments
from bs_cluster.stacks.nullspace import output_directions, sampled_directions

WIDTHS = (640, 2048, 3840)  # Gemma 3 270M's residual and MLP, the 12B's residual
ROWS, TOKENS_PER_ROW, M, K = 200, 20, 128, 64
ENFORCED_DOMAINS = 4


def measure(settings: Settings) -> list[Table]:
    return [_bases(settings), _enforcement(settings)]


def _bases(settings: Settings) -> Table:
    """Subspace error is the largest sine of a principal angle to the SVD of all deltas, the slowest way."""
    table = Table(
        f"A basis of rank {K} from {ROWS * TOKENS_PER_ROW} tokens, M = {M}",
        ("out_features", "way", "seconds", "peak MiB", "subspace error"),
    )
    for width in WIDTHS:
        generator = torch.Generator().manual_seed(0)
        spectrum_M = torch.logspace(0, -2, M)
        z_TM = (torch.randn(ROWS * TOKENS_PER_ROW, M, generator=generator) * spectrum_M).to(settings.device)
        b_MO = torch.randn(M, width, generator=generator).to(settings.device) / width**0.5
        exact_OK = torch.linalg.svd((z_TM.double() @ b_MO.double()), full_matrices=False).Vh[:K].t().float()

        def streamed(z_TM=z_TM, b_MO=b_MO) -> torch.Tensor:
            moment = Moments.empty(("s",), M, device=z_TM.device)
            for part_TM in z_TM.split(1000):
                moment.add(part_TM, part_TM, ("s",))
            return output_directions(moment.c_MM, b_MO, max_rank=K, energy=1.0)

        def randomised(z_TM=z_TM, b_MO=b_MO) -> torch.Tensor:
            means_NM = z_TM.unflatten(0, (ROWS, TOKENS_PER_ROW)).mean(1)
            return sampled_directions(means_NM, b_MO, max_rank=K)

        def dense(exact_OK=exact_OK) -> torch.Tensor:
            return torch.eye(len(exact_OK), device=exact_OK.device) - exact_OK @ exact_OK.t()

        for name, way in (
            ("streamed second moment, exact", streamed),
            ("randomized SVD of row means (the paper)", randomised),
            ("dense projector from a known basis", dense),
        ):
            way()
            started = time.perf_counter()
            found = way()
            seconds = time.perf_counter() - started
            error = "same basis" if way is dense else _largest_sine(found, exact_OK)
            table.rows.append((width, name, seconds, peak_bytes(way, settings.device) / 2**20, error))
    return table


def _largest_sine(a_OK: torch.Tensor, b_OK: torch.Tensor) -> float:
    residual_OK = b_OK.double() - a_OK.double() @ (a_OK.double().t() @ b_OK.double())
    return float(torch.linalg.matrix_norm(residual_OK, 2))


def _enforcement(settings: Settings) -> Table:
    where = (settings.base, settings.device, settings.rows, settings.tokens)
    free = our_stacks(*where, 0, learns=True, cached=settings.device == "cpu")
    bound = our_stacks(*where, 0, learns=True, cached=settings.device == "cpu")
    assert bound.tuner is not None
    bases = {}
    for path, site in zip(bound.tuner.site_names(), bound.tuner.sites, strict=True):
        rank = min(K * ENFORCED_DOMAINS, site.out_features // 2)
        bases[path] = torch.linalg.qr(torch.randn(site.out_features, rank))[0]
    bound.tuner.confine(Basis(bases))
    seconds = medians(take_turns({"free": free.step, "confined": bound.step}, settings.rounds * 2, settings.device))
    numbers = sum(basis.numel() for basis in bases.values()) * 4 / 2**20
    dense = sum(basis.shape[0] ** 2 for basis in bases.values()) * 4 / 2**20
    return Table(
        f"Enforcement in a training step: {settings.base}",
        ("what", "seconds", "× free", "memory MiB"),
        [
            ("free", seconds["free"], 1.0, 0.0),
            (
                f"confined, K = {K * ENFORCED_DOMAINS} a site (at most half)",
                seconds["confined"],
                seconds["confined"] / seconds["free"],
                numbers,
            ),
            ("dense projectors, for scale", "not run", "", dense),
        ],
        note=f"{ENFORCED_DOMAINS} earlier domains of rank {K} each; a few thousand tokens a micro-batch on a GPU make "
        "the share smaller, since it does not depend on the tokens.",
        targets=[Target("confined / free", seconds["confined"] / seconds["free"], 1.03)],
    )
