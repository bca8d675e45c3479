"""Serving a bundle: what it answers is what the base with those stacks, those gates and greedy decoding gives."""

import dataclasses

import pytest
import torch

from bs_cluster.config.parse import to_yaml
from bs_cluster.data.encode import encode_prompt, encode_router_prompt
from bs_cluster.errors import ConfigError, IntegrityError
from bs_cluster.inference.evaluator import encode_states
from bs_cluster.serving.runtime import BundleRuntime

DOMAINS = ("aa", "bb")
PROMPTS = ("aa alpha12", "bb a longer prompt than the other")


@pytest.fixture(scope="module")
def made(bundled):
    return bundled.config, bundled.store, bundled.stacked, bundled.router, bundled.manifest


def greedy(stacked, ids: list[int], weights: list[float], steps: int) -> str:
    """One token after another, the whole text anew each time: no cache, no padding, no generate()."""
    tokenizer, model = stacked.base.tokenizer, stacked.base.model
    text = list(ids)
    with torch.no_grad(), stacked.tuner.gates(torch.tensor([weights]), DOMAINS):
        for _ in range(steps):
            logits = model(input_ids=torch.tensor([text])).logits[0, -1]
            text.append(int(logits.argmax()))
            if text[-1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(text[len(ids) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("on", [(), ("aa",), ("bb",), ("aa", "bb")])
def test_answers_are_greedy_decoding_under_those_gates(made, runtime, on):
    config, _, stacked, _, _ = made
    weights = [float(domain in on) for domain in DOMAINS]
    for prompt in PROMPTS:
        (answer,) = runtime.answer([prompt], runtime.fixed_gates(on, 1), max_new_tokens=6)
        ids = encode_prompt(prompt, stacked.base.tokenizer, config.data)
        assert answer.text == greedy(stacked, ids, weights, 6)
        assert answer.gates == dict(zip(DOMAINS, weights, strict=True))


def test_prompts_answered_together_are_answered_as_alone(runtime):
    weights_BD = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    together = runtime.answer(PROMPTS, weights_BD, max_new_tokens=6)
    alone = [runtime.answer([p], w[None], max_new_tokens=6)[0] for p, w in zip(PROMPTS, weights_BD, strict=True)]
    assert together == alone


def test_the_ways_to_answer_differ(runtime):
    """Else the test above would say little."""
    texts = {on: runtime.answer(PROMPTS[:1], runtime.fixed_gates(on, 1), 6)[0].text for on in ((), ("aa",), ("bb",))}
    assert len(set(texts.values())) == 3


def test_gates_are_the_meta_router_s_on_the_prompt_as_it_was_trained(made, runtime):
    config, _, stacked, router, _ = made
    limit = config.router.max_prompt_length
    ids = [encode_router_prompt(prompt, stacked.base.tokenizer, config.data, limit) for prompt in PROMPTS]
    states = encode_states(stacked, ids, config.router.mid_weight, pooled=True)
    assert runtime.gates(PROMPTS).tolist() == router.gates(states).tolist()
    taught = runtime.gates([f"{domain} beta{n}" for domain in DOMAINS for n in range(6)]).argmax(dim=1)
    assert (taught == torch.tensor([0] * 6 + [1] * 6)).float().mean() > 0.7  # else the router would say little


def test_a_prompt_is_routed_alike_alone_and_among_others(runtime):
    prompts = [*PROMPTS, "bb beta3", "something else altogether"]
    alone = torch.cat([runtime.gates([prompt]) for prompt in prompts])
    assert torch.equal(runtime.gates(prompts), alone)


def test_a_routed_answer_is_the_one_under_its_own_gates(runtime):
    routed = runtime.answer(PROMPTS, max_new_tokens=5)
    weights_BD = runtime.gates(PROMPTS)
    fixed = runtime.answer(PROMPTS, weights_BD, max_new_tokens=5)
    assert routed == fixed
    assert [list(answer.gates.values()) for answer in routed] == weights_BD.tolist()


def test_routing_leaves_no_trace_on_the_base(runtime):
    """Encoding prompts turns stacks off for itself alone."""
    before = runtime.answer(PROMPTS[:1], runtime.fixed_gates(DOMAINS, 1), 5)
    runtime.gates(PROMPTS)
    assert runtime.answer(PROMPTS[:1], runtime.fixed_gates(DOMAINS, 1), 5) == before


def test_fixed_gates(runtime):
    assert runtime.fixed_gates(["bb"], 2).tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert runtime.fixed_gates([], 1).tolist() == [[0.0, 0.0]]


def test_a_domain_that_the_bundle_lacks_is_told_with_those_it_has(runtime):
    with pytest.raises(ConfigError, match="domain 'cc' is not in the bundle; it has aa, bb"):
        runtime.fixed_gates(["aa", "cc"], 1)


def test_serving_reads_the_config_as_training_did(made, tmp_path):
    """In YAML 1.1 ``no`` is false and a domain ``on`` is true: such a campaign trained and could not be served."""
    config, store, _, _, manifest = made
    aa, bb = config.domains
    source = aa.sources[0].model_copy(update={"where": {"language": "no"}})
    domains = (aa.model_copy(update={"sources": (source,)}), bb, bb.model_copy(update={"name": "on"}))
    config = config.model_copy(update={"domains": domains})
    (tmp_path / "campaign.yaml").write_text(to_yaml(config))
    others = tuple(entry for entry in manifest.files if entry.name != "campaign.yaml")
    written = store.put_file(tmp_path / "campaign.yaml", "campaign.yaml")
    served = BundleRuntime(store, dataclasses.replace(manifest, files=(*others, written)), "cpu")
    assert served.config == config


def test_a_meta_router_of_other_domains_is_refused(made):
    _, store, _, _, manifest = made
    swapped = dataclasses.replace(manifest, domains=("bb", "aa"))
    with pytest.raises(IntegrityError, match="was trained for domains"):
        BundleRuntime(store, swapped, "cpu")
