"""Log-likelihoods of the choices of many questions at once, each question's words read once for all of its choices.

A question is read in a slot of its own; its keys and values are then copied to a slot for each choice, which reads on
from there. The first token of every choice comes from the question's last state, so one-token choices cost no second
pass. The head sees the states that predict a choice's tokens and no others.

Shapes: B questions, C choices of them all, T tokens, N tokens to score, D domains, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bs_cluster.data.batch import pad
from bs_cluster.decoder import decoder_and_head
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.serving.key_values import KeyValues

HEAD_ROWS = 64  # 67 MB of logits in fp32 with Gemma's vocabulary

Likelihood = tuple[float, bool]  # nats, and whether every token is the likeliest one where it stands


@dataclass(frozen=True)
class Question:
    """Token ids: a context, at least one, and the continuations that are scored after it, each of at least one."""

    context: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]

    @property
    def area(self) -> int:
        """Places that it takes of a batch: its slots by the longest of them."""
        return len(self.choices) * (len(self.context) + max(map(len, self.choices)))


@torch.no_grad()
def score_choices(
    stacked: StackedBase, questions: Sequence[Question], weights_BD: torch.Tensor, domains: Sequence[str]
) -> list[list[Likelihood]]:
    """Of each question, its choices' log-likelihoods in nats, summed over all of their tokens, under its gates."""
    model, pad_id = stacked.base.model, stacked.base.tokenizer.pad_token_id
    decoder, head, softcap = decoder_and_head(model)
    choices = [choice for question in questions for choice in question.choices]
    owner_C = torch.tensor([b for b, question in enumerate(questions) for _ in question.choices])
    length_B = torch.tensor([len(question.context) for question in questions])
    longest = max(map(len, choices))
    held = KeyValues(len(choices), int(length_B.max()) + longest)

    def states(ids: Sequence[Sequence[int]], first_B: torch.Tensor, gates_BD: torch.Tensor) -> torch.Tensor:
        ids_BT = pad(ids, pad_id)  # type: ignore[arg-type]
        position_BT = (first_B[:, None] + torch.arange(ids_BT.shape[1])).to(model.device)
        held.at(0, position_BT)
        with stacked.tuner.gates(gates_BD.to(model.device), domains):
            return decoder(
                input_ids=ids_BT.to(model.device),
                position_ids=position_BT,
                attention_mask=held.masks(model.config.get_text_config()),
                past_key_values=held,
                use_cache=True,
            ).last_hidden_state

    read_BTH = states([question.context for question in questions], torch.zeros_like(length_B), weights_BD)
    predicting_CTH = read_BTH[torch.arange(len(questions)), length_B - 1][owner_C][:, None]
    if longest > 1:
        for slot in reversed(range(len(choices))):  # a slot comes after its question's, so nothing is lost
            held.move(int(owner_C[slot]), slot, int(length_B[owner_C[slot]]))
        rest_CTH = states([choice[:-1] for choice in choices], length_B[owner_C], weights_BD[owner_C])
        predicting_CTH = torch.cat([predicting_CTH, rest_CTH], dim=1)
    scored_CT = pad([[1] * len(choice) for choice in choices], 0).bool()
    predicting_NH = predicting_CTH[scored_CT.to(model.device)]
    label_N = torch.tensor([token for choice in choices for token in choice], device=model.device)
    nats, likeliest = [], []
    for part_nH, label_n in zip(predicting_NH.split(HEAD_ROWS), label_N.split(HEAD_ROWS), strict=True):
        logits_nV = head(part_nH).float()
        if softcap is not None:
            logits_nV = softcap * torch.tanh(logits_nV / softcap)
        nats.append(logits_nV.gather(1, label_n[:, None])[:, 0] - logits_nV.logsumexp(dim=1))
        likeliest.append(logits_nV.argmax(dim=1) == label_n)
    lengths = [len(choice) for choice in choices]
    found = [
        (float(nats_T.double().sum()), bool(hits_T.all()))
        for nats_T, hits_T in zip(torch.cat(nats).split(lengths), torch.cat(likeliest).split(lengths), strict=True)
    ]
    ends = [sum(len(question.choices) for question in questions[: b + 1]) for b in range(len(questions))]
    return [found[end - len(question.choices) : end] for question, end in zip(questions, ends, strict=True)]
