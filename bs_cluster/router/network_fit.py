"""Training of the paper's network on measured targets, from hidden states that were encoded once.

A small campaign has some fifty rows for two million weights. What keeps that honest: standardised features, dropped
tokens, enough steps whatever the number of rows, and the best epoch by rows kept aside inside the training rows.
Rows that judge it are never seen here. Shapes: B prompts, T tokens, H hidden size, D domains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bs_cluster.config.schema import NetworkSection
from bs_cluster.errors import DataError
from bs_cluster.records import Record
from bs_cluster.router.net import MetaRouter
from bs_cluster.router.states import CachedStates

# The paper's epochs are meant for thousands of rows; with few, so many more epochs that this many steps are made.
MIN_STEPS = 200
WARMUP_SHARE = 0.1
TOKEN_DROP = 0.3
VALIDATION_SHARE = 0.2
MARGIN = 0.3


@dataclass(frozen=True)
class EpochRecord(Record):
    """``bce`` is BCE alone, on the inner validation rows after this epoch (from 1)."""

    epoch: int
    bce: float


@dataclass(frozen=True)
class TrainedRouter:
    """A router in eval mode at its best epoch, on the CPU."""

    router: MetaRouter
    history: tuple[EpochRecord, ...]


def train_router(
    states: Sequence[np.ndarray],
    targets_BD: np.ndarray,
    settings: NetworkSection,
    seed: int,
    device: torch.device | str = "cpu",
) -> TrainedRouter:
    """Fit a router to soft targets in [0, 1]; ``states`` are the training rows' (T, H) router states.

    Deterministic by ``seed``. Raises DataError for fewer than two rows or targets that do not match the states.
    """
    if len(states) < 2 or targets_BD.shape[0] != len(states):
        raise DataError(f"{len(states)} rows of router states and targets of shape {targets_BD.shape}; 2 rows or more")
    cached = CachedStates(states, device)
    target_BD = torch.from_numpy(targets_BD).to(device, torch.float32)
    train, validation = _inner_split(targets_BD, seed)
    order = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[cached.flat_NH.device] if cached.flat_NH.is_cuda else []):
        torch.manual_seed(seed)
        router = MetaRouter(cached.width, target_BD.shape[1], settings.hidden, settings.dropout).to(device)
        router.standardise_with(*cached.centre_and_scale(train))
        steps_per_epoch = -(-len(train) // settings.batch_size)
        epochs = max(settings.epochs, -(-MIN_STEPS // steps_per_epoch))
        optimizer = torch.optim.AdamW(router.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _cosine(epochs * steps_per_epoch))
        history: list[EpochRecord] = []
        best, best_weights = math.inf, router.state_dict()
        for epoch in range(1, epochs + 1):
            for rows in np.array_split(order.permutation(train), steps_per_epoch):
                _step(router, cached, target_BD, rows.tolist(), optimizer, settings.margin_weight)
                schedule.step()
            history.append(EpochRecord(epoch, _evaluate(router, cached, target_BD, validation)))
            if history[-1].bce < best:
                best, best_weights = history[-1].bce, copy.deepcopy(router.state_dict())
    router.load_state_dict(best_weights)
    return TrainedRouter(router.cpu().eval(), tuple(history))


def route(router: MetaRouter, states: Sequence[np.ndarray], batch_size: int = 32) -> Tensor:
    """Logits (B, D) of a trained router for many prompts' states."""
    cached = CachedStates(states)
    rows = list(range(len(cached)))
    with torch.no_grad():
        return torch.cat([router(*cached.batch(rows[i : i + batch_size])) for i in range(0, len(rows), batch_size)])


def router_loss(logits_BD: Tensor, target_BD: Tensor, margin_weight: float) -> Tensor:
    """BCE with soft targets, plus a penalty on probabilities closer to one half than ``MARGIN``."""
    doubt_BD = torch.relu(MARGIN - (torch.sigmoid(logits_BD) - 0.5).abs())
    return nn.functional.binary_cross_entropy_with_logits(logits_BD, target_BD) + margin_weight * doubt_BD.mean()


def _step(
    router: MetaRouter,
    cached: CachedStates,
    target_BD: Tensor,
    rows: list[int],
    optimizer: torch.optim.Optimizer,
    margin_weight: float,
) -> None:
    router.train()
    states_BTH, mask_BT = cached.batch(rows)
    logits_BD = router(states_BTH, _drop_tokens(mask_BT))
    loss = router_loss(logits_BD, target_BD[rows], margin_weight)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(router.parameters(), 1.0)
    optimizer.step()


def _evaluate(router: MetaRouter, cached: CachedStates, target_BD: Tensor, rows: list[int]) -> float:
    router.eval()
    with torch.no_grad():
        return float(router_loss(router(*cached.batch(rows)), target_BD[rows], margin_weight=0.0))


def _drop_tokens(mask_BT: Tensor) -> Tensor:
    """Hide a random share of tokens, never a prompt's all: the router must not hang on a single word."""
    kept_BT = mask_BT & (torch.rand(mask_BT.shape, device=mask_BT.device) >= TOKEN_DROP)
    return torch.where(kept_BT.any(dim=1, keepdim=True), kept_BT, mask_BT)


def _inner_split(targets_BD: np.ndarray, seed: int) -> tuple[list[int], list[int]]:
    """(train, validation) rows, validation spread over the rows' strongest domains."""
    shuffled = np.random.default_rng(seed).permutation(len(targets_BD))
    by_domain = shuffled[np.argsort(targets_BD.argmax(axis=1)[shuffled], kind="stable")]
    every = round(1 / VALIDATION_SHARE)
    validation = by_domain[every // 2 :: every] if len(by_domain) > every // 2 else by_domain[:1]
    return sorted(set(range(len(targets_BD))) - set(validation.tolist())), sorted(validation.tolist())


def _cosine(steps: int):
    """Learning-rate factor: linear warm-up, then a cosine to zero."""
    warmup = max(1, round(WARMUP_SHARE * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor
