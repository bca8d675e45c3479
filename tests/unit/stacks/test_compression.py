"""Rounds merged into one stack: exact where one can hold them, the best it can be where not, and kept out of whatever
they were kept out of."""

import pytest
import torch
from stack_kit import orthonormal, random_ids, stacked_model, tuner

from bs_cluster.stacks import StackLinear
from bs_cluster.stacks.compression import Merged, merge

NAMES = ["chat_r1", "chat_r2"]
IDS = random_ids(4, 23)


@torch.no_grad()
def merged_sites(peft) -> list[Merged]:
    stacks = tuner(peft.eval())
    with stacks.measuring_merge(NAMES) as moments:
        peft(input_ids=IDS)
    return [
        merge(moments.gram_PXX[p], rows(s, "stack_A"), rows(s, "stack_B"), s.experts, s.rank) for p, s in each(peft)
    ]


def each(peft):
    return enumerate(tuner(peft).sites)


def rows(site: StackLinear, part: str) -> torch.Tensor:
    return torch.cat([getattr(site, part)[name].detach().flatten(0, 1) for name in NAMES])


def put(peft, sites: list[Merged]) -> None:
    """The merged experts in the place of the first round's, which fires alone from now on."""
    for p, site in each(peft):
        site.stack_A[NAMES[0]].data.copy_(sites[p].a_ERI)
        site.stack_B[NAMES[0]].data.copy_(sites[p].b_ERO)
        site.unpack()
    tuner(peft).fire(NAMES[:1])


@torch.no_grad()
def logits(peft) -> torch.Tensor:
    return peft.eval()(input_ids=IDS).logits


def test_rounds_that_one_stack_can_hold_are_held_exactly():
    """Gates and reads of the rounds are the same: what they write adds up."""
    peft = stacked_model("gemma3", NAMES)
    for _, site in each(peft):
        for part in ("stack_A", "stack_router"):
            getattr(site, part)[NAMES[1]].data.copy_(getattr(site, part)[NAMES[0]])
        site.unpack()
    before, sites = logits(peft), merged_sites(peft)
    assert max(site.missed for site in sites) < 1e-4
    put(peft, sites)
    torch.testing.assert_close(logits(peft), before, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_what_is_missed_is_what_the_site_writes_otherwise_on_the_same_tokens():
    peft = stacked_model("gemma3", NAMES)
    inputs: dict[int, torch.Tensor] = {}
    hooks = [
        site.register_forward_pre_hook(lambda _, given, p=p: inputs.update({p: given[0].flatten(0, -2).clone()}))
        for p, site in each(peft)
    ]
    sites = merged_sites(peft)
    for hook in hooks:
        hook.remove()
    delta = {p: site(inputs[p]) - site.base_output(inputs[p]) for p, site in each(peft)}
    tuner(peft).fire(NAMES[:1])
    first = {p: site(inputs[p]) - site.base_output(inputs[p]) for p, site in each(peft)}
    put(peft, sites)
    for p, site in each(peft):
        now = site(inputs[p]) - site.base_output(inputs[p])
        missed = float((now - delta[p]).square().sum() / delta[p].square().sum())
        assert missed == pytest.approx(sites[p].missed, rel=1e-2, abs=1e-4)
        assert missed < 0.8 * float((first[p] - delta[p]).square().sum() / delta[p].square().sum())


def test_no_small_step_from_the_merged_experts_is_better():
    peft = stacked_model("gemma3", NAMES)
    stacks = tuner(peft.eval())
    with torch.no_grad(), stacks.measuring_merge(NAMES) as moments:
        peft(input_ids=IDS)
    site, gram_XX = stacks.sites[0], moments.gram_PXX[0]
    a_MI, b_MO = rows(site, "stack_A").double(), rows(site, "stack_B").double()
    fitted, m, draw = merge(gram_XX, a_MI, b_MO, site.experts, site.rank), len(a_MI), torch.Generator().manual_seed(0)

    def error(a_ERI: torch.Tensor, b_ERO: torch.Tensor) -> float:
        to_A = torch.linalg.pinv(a_MI)  # what is read lies in the rows of A
        w_FO = torch.cat([(a_RI @ to_A).t() @ b_RO for a_RI, b_RO in zip(a_ERI, b_ERO, strict=True)])
        both_XO = torch.cat([w_FO, -b_MO])
        return float((both_XO * (gram_XX @ both_XO)).sum() / (b_MO * (gram_XX[-m:, -m:] @ b_MO)).sum())

    best = error(fitted.a_ERI.double(), fitted.b_ERO.double())
    assert best == pytest.approx(fitted.missed, rel=1e-3)
    for _ in range(20):
        inside = torch.randn(site.experts, site.rank, m, generator=draw, dtype=torch.float64) @ a_MI
        step = torch.randn(fitted.b_ERO.shape, generator=draw, dtype=torch.float64)
        assert error(fitted.a_ERI.double() + 1e-3 * inside, fitted.b_ERO.double() + 1e-3 * step) > best


def test_the_merged_stack_is_kept_out_of_what_its_rounds_were_kept_out_of():
    peft = stacked_model("gemma3", NAMES)
    bases = {}
    for p, site in each(peft):
        bases[p] = v_IK, v_OK = (
            orthonormal(site.in_features, 3, p).float(),
            orthonormal(site.out_features, 3, p + 99).float(),
        )
        for name in NAMES:
            site.stack_A[name].data -= site.stack_A[name].data @ v_IK @ v_IK.t()
            site.stack_B[name].data -= site.stack_B[name].data @ v_OK @ v_OK.t()
        site.unpack()
    for p, fitted in enumerate(merged_sites(peft)):
        for rows_ERX, basis_XK in zip((fitted.a_ERI, fitted.b_ERO), bases[p], strict=True):
            assert rows_ERX.norm() > 0.1
            assert (rows_ERX @ basis_XK).norm() < 1e-5 * rows_ERX.norm()
