"""What ranks do in the tests of alignment: a round after a supervised one, watched, killed and gone on with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rank_work import DrivenByHand, Killed, Round, from_rank_0
from torch.nn import functional as F

from bs_cluster.adapter_format import WEIGHTS_NAME
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.events import RoundResumed
from bs_cluster.inference.scoring import score_batch
from bs_cluster.records import DomainRecord
from bs_cluster.training import loop
from bs_cluster.training.preferences import Preferences


@dataclass
class Alignment:
    """A round of alignment after a supervised one: how it ended, the step it went on after, what the parent was to the
    bit before it and in it, and all that the campaign holds at its end."""

    ended: Round | None
    resumed_after: int
    parent_kept: bool
    losses: tuple[float, float]
    stacks: dict[str, str]
    record: DomainRecord | None


def aligned_round(config: CampaignConfig, steps: int | None = None, to_the_end: bool = False) -> Alignment:
    """The first domain's round of alignment from where it was left; it ends, as by a crash, after so many steps."""
    campaign = DrivenByHand(config)
    session = campaign.session
    for _, manifest in campaign.store.stacks():
        session.stacked.attach(manifest, campaign.store)
    if not campaign.store.stacks():
        campaign.step()
    ids = torch.tensor([list(session.rows("aa").validation[0].input_ids)])
    logits, kept, losses = [], [], [(0.0, 0.0)]

    def parents_logits() -> torch.Tensor:
        session.stacked.base.model.eval()
        with torch.no_grad():
            return session.stacked.base.model(input_ids=ids).logits

    session.stacked.fire(["aa_r1"])
    logits.append(parents_logits())
    made, clean = 0, (loop.failpoint, Preferences.loss)

    def failpoint(name):
        nonlocal made
        if name != "training.step":
            return clean[0](name)
        with session.stacked.tuner.parent_only():
            kept.append(torch.equal(parents_logits(), logits[0]))
        if made == steps:
            raise Killed
        made += 1
        return None

    def loss(preferences, learning, micro):
        told = clean[1](preferences, learning, micro)
        if micro.counts:
            pairs = [preferences.train[index] for index in micro.units]
            session.stacked.base.model.eval()
            logps_B2 = torch.tensor(
                [[-one.nll for one in score_batch(session.stacked, pair.answers)] for pair in pairs]
            )
            session.stacked.base.model.train()
            gained_B2 = logps_B2 - torch.tensor([preferences.reference[index] for index in micro.units])
            margins_B = gained_B2[:, 0] - gained_B2[:, 1]
            losses.append((float(told), float(-F.logsigmoid(preferences.entry.beta * margins_B).sum())))
        return told

    ended, record, names = None, None, set(session.stacked.names)
    loop.failpoint, Preferences.loss = failpoint, loss
    try:
        ended = campaign.step()
        if to_the_end:
            record = next(done for done in campaign.all_steps() if isinstance(done, DomainRecord))
    except Killed:
        pass
    finally:
        loop.failpoint, Preferences.loss = clean
    if ended is not None and not ended.outcome.committed and not to_the_end:
        assert set(session.stacked.names) == names, "a rejected stack is still attached"
    assert "forward" not in vars(session.stacked.base.model), "the base keeps TRL's head"
    after = from_rank_0(sum(event.step for event in campaign.events if isinstance(event, RoundResumed)))
    stacks = {ref.stack.name: manifest.file(WEIGHTS_NAME).sha256 for ref, manifest in campaign.store.stacks()}
    return Alignment(ended, after, all(kept), losses[-1], stacks, record)


def aligned_and_killed(config: CampaignConfig, steps: int) -> list[Alignment]:
    return [aligned_round(config, steps), aligned_round(config)]
