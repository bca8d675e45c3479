"""The objective of a dpo round: the chosen one of two answers gains on the other over what the parent gave them.

Shapes: B pairs, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from bs_cluster.config.rounds import RoundSection
from bs_cluster.config.schema import TrainingSection
from bs_cluster.data.aligned import Pair
from bs_cluster.data.batch import train_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.records import RowLoss
from bs_cluster.training.objective import Batch, Learning, Micro, Watched, micro_batches
from bs_cluster.training.session import Session
from bs_cluster.training.trl_losses import Losses
from bs_cluster.training.zero import Learner


class Preferences:
    """DPO (Rafailov et al., 2305.18290) by TRL's loss on pairs. The reference is the parent: what fires, the learning
    stack left out. Its log-probabilities of the pairs are measured once."""

    def __init__(
        self,
        session: Session,
        entry: RoundSection,
        training: TrainingSection,
        losses: Losses,
        train: Sequence[Pair],
        selection: Sequence[Pair],
        seed: int,
    ):
        self.session, self.entry, self.training, self.losses = session, entry, training, losses
        settings = {"steps": training.steps, "global_batch": training.global_batch, "seed": seed}
        self.batches = train_batches(len(train), **settings)
        self.train, self.selected = train, selection
        wanted = sorted({index for batch in self.batches for index in batch})
        with session.stacked.tuner.parent_only():
            logps = log_probabilities(session, [train[index] for index in wanted])
            self.selected_B2 = log_probabilities(session, selection)
        self.reference = dict(zip(wanted, logps.tolist(), strict=True))

    def batch(self, step: int) -> Batch:
        indices = self.batches[step - 1]
        tokens = sum(len(row.input_ids) for index in indices for row in self.train[index].answers)
        return Batch(micro_batches(indices, self.training), len(indices), tokens)

    def brings(self, step: int, micro: Micro) -> Learning:
        """No noise: the reference and what is served are the same function without it."""
        mask_BT = self._inputs(micro)["attention_mask"]
        return Learning(None, mask_BT.flatten().double() * micro.counts)

    def loss(self, learning: Learner, micro: Micro) -> torch.Tensor:
        inputs = {name: tensor.to(learning.device) for name, tensor in self._inputs(micro).items()}
        return self.losses.of(learning.engine, inputs) * len(micro.units) * micro.counts

    def _inputs(self, micro: Micro) -> dict[str, torch.Tensor]:
        examples = []
        for index in micro.units:
            chosen, rejected = self.train[index].answers
            ref_chosen, ref_rejected = self.reference[index]
            examples.append(
                {
                    "prompt_ids": list(chosen.input_ids[: chosen.prompt_length]),
                    "chosen_ids": list(chosen.input_ids[chosen.prompt_length :]),
                    "rejected_ids": list(rejected.input_ids[rejected.prompt_length :]),
                    "ref_chosen_logps": ref_chosen,
                    "ref_rejected_logps": ref_rejected,
                }
            )
        inputs = self.losses.collate(examples)
        if self.session.stacked.base.model.config.get_text_config() is not self.session.stacked.base.model.config:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])  # a multimodal Gemma 3 asks for it
        return inputs

    def selection(self) -> float:
        """Mean −log σ(β margin) of the selection pairs, whatever loss the round takes; log 2 at the parent."""
        margins_B = self.margins(self.selected, self.selected_B2)
        return float(-F.logsigmoid(self.entry.beta * margins_B).mean())

    def margins(self, pairs: Sequence[Pair], reference_B2: torch.Tensor) -> torch.Tensor:
        """By how much the chosen answer gained on the rejected one over the reference, nats (B,)."""
        gained_B2 = log_probabilities(self.session, pairs) - reference_B2
        return gained_B2[:, 0] - gained_B2[:, 1]

    def watched(self) -> Watched:
        logged = self.losses.figures()
        names = {"rewards/accuracies": "preferred", "rewards/margins": "margin"}
        return Watched({ours: logged[theirs] for theirs, ours in names.items() if theirs in logged})


def log_probabilities(session: Session, pairs: Sequence[Pair]) -> torch.Tensor:
    """log π of both answers of each pair under what fires now, (B, 2) in float64, chosen first. Every rank calls it."""
    rows: list[EncodedRow] = [row for pair in pairs for row in pair.answers]
    return torch.tensor([-loss.nll for loss in session.score(rows)], dtype=torch.float64).view(-1, 2)


def ranked_wrong(logps_B2: torch.Tensor, pairs: Sequence[Pair]) -> list[RowLoss]:
    """1 where the rejected answer is the likelier one by token, else 0; half where they are alike."""
    lengths_B2 = torch.tensor([[row.completion_length for row in pair.answers] for pair in pairs], dtype=torch.float64)
    return wrong(*(logps_B2 / lengths_B2).t())


def wrong(better_B: torch.Tensor, worse_B: torch.Tensor) -> list[RowLoss]:
    return [RowLoss(0.5 * (1 - float(sign)), 1) for sign in torch.sign(better_B - worse_B)]
