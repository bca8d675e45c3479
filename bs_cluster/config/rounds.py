"""The rounds of a domain by objective: supervised boosting, then alignment on preferences or on rewards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bs_cluster.config.section import AboveZero, NonNegative, Positive, Section
from bs_cluster.config.sources import Source

Objective = Literal["sft", "dpo", "grpo"]
SFT, DPO, GRPO = "sft", "dpo", "grpo"
# What a setting means to: the others refuse it.
ONLY = {
    "loss": (DPO,),
    "group": (GRPO,),
    "temperature": (GRPO,),
    "answer_tokens": (GRPO,),
    "max_kl": (GRPO,),
    "min_entropy": (GRPO,),
    "rollouts": (GRPO,),
}


class RoundSection(Section):
    """One entry of a domain's rounds: sft stands for all its boosting rounds, dpo and grpo for one round each.

    The paper names both and publishes neither; their defaults are those of the literature for adapters (rates some ten
    times those of full fine-tuning) where a comment says no more.
    """

    objective: Objective = Field(
        description="sft: boosting rounds on the domain's sources, max_rounds at most. dpo: a stack that learns "
        "preferences. grpo: a stack that learns from rewards for its own answers."
    )
    source: Source | None = Field(
        default=None,
        description="dpo: rows of prompt, chosen and rejected. grpo: rows whose answers can be checked (verify).",
    )
    held_out: Annotated[int, Field(ge=8, le=1_000_000)] = Field(
        default=100, description="Prompts of the source that choose the snapshot and decide about the commit."
    )
    steps: Positive = Field(default=100, le=10_000_000, description="Optimizer steps of the round.")
    learning_rate: AboveZero = Field(default=2e-5, le=100, description="Peak learning rate of the round.")
    global_batch: Positive = Field(
        default=16, le=65536, description="Pairs of an optimizer step (dpo), or prompts (grpo), over all workers."
    )
    per_device_batch: Positive = Field(
        default=4, le=65536, description="Pairs (dpo) or answers (grpo) in a worker's micro-batch."
    )
    eval_every: Positive = Field(default=20, le=10_000_000, description="Steps between looks at the held-out prompts.")
    beta: AboveZero = Field(
        default=0.1, le=10, description="dpo: how hard it holds on to its parent. grpo: weight of the KL to it."
    )
    # What keeps an alignment from being paid with what the domain, or another one, could do before.
    max_loss_rise: NonNegative = Field(
        default=0.05,
        description="Nats per completion token by which the domain's own validation rows, or those of a closed domain "
        "beside whose stacks this one fires, may lose more than before.",
    )
    loss: Literal["sigmoid", "sigmoid_norm", "ipo", "hinge", "robust"] = Field(
        default="sigmoid", description="dpo: TRL's loss_type."
    )
    group: Annotated[int, Field(ge=4, le=1024)] = Field(
        default=8, description="grpo: answers to a prompt that are compared with each other."
    )
    temperature: AboveZero = Field(default=1.0, le=10, description="grpo: at which answers are drawn.")
    answer_tokens: Positive = Field(default=128, le=65536, description="grpo: tokens of an answer at most.")
    max_kl: AboveZero = Field(
        default=1.0, description="grpo: nats per token from the parent beyond which the round ends."
    )
    min_entropy: NonNegative = Field(
        default=0.02, description="grpo: nats per token of entropy below which the round ends."
    )
    rollouts: Literal["workers", "evaluators"] = Field(
        default="workers",
        description="grpo: who generates answers: the training workers themselves, or sweep.evaluators actors beside "
        "them, with sweep's own resources.",
    )

    @property
    def aligned(self) -> bool:
        """Whether it is a round of alignment, with rows of its own."""
        return self.objective != SFT

    @property
    def units_of_a_step(self) -> int:
        """What counts as one in the batch of an optimizer step: a pair, or of a prompt each of its answers."""
        return self.global_batch * (1 if self.objective == DPO else self.group)

    @property
    def rows_of_a_step(self) -> int:
        """Sequences that an optimizer step learns from: two of a pair, a group of a prompt."""
        return self.units_of_a_step * (2 if self.objective == DPO else 1)

    @property
    def unit(self) -> str:
        """What its source's rows are called."""
        return "pair" if self.objective == DPO else "prompt"


SUPERVISED = (RoundSection(objective=SFT),)
