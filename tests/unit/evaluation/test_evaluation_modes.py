"""What lm-eval is told of a bundle: the base as lm-eval's own adapter has it, and each prompt under its own gates."""

import string

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM

from bs_cluster.evaluation.choices import Question, score_choices
from bs_cluster.evaluation.model import BundleLM
from bs_cluster.serving.runtime import BundleRuntime

DOMAINS = ("aa", "bb")
LONG = "a text that is longer than the sliding window, which is of sixty-four tokens, a byte each; "
PAIRS = [
    ("aa alpha1", " ALPHA1"),
    ("aa alpha1", " x"),
    ("aa alpha1", " no answer at all"),
    ("bb ends in a space ", "so the space is scored"),
    ("", "nothing before it"),
    ("<bos>brings its own", " bos"),
    (LONG, " Q"),
    (LONG + "?", " and a choice of many tokens that is longer than the window of a sliding layer is, too"),
    (LONG * 15, " after more than the model can read"),
]


def requests(pairs, kind: str = "loglikelihood") -> list[Instance]:
    return [Instance(kind, {}, pair, i) for i, pair in enumerate(pairs)]


def model(runtime: BundleRuntime, on) -> BundleLM:
    return BundleLM(runtime, on, 512, print)


@pytest.fixture(scope="module")
def theirs(inputs, runtime) -> HFLM:
    base = AutoModelForCausalLM.from_pretrained(inputs / "base", dtype=torch.float32)
    return HFLM(pretrained=base, tokenizer=runtime.stacked.base.tokenizer, batch_size=3)


def likeliest(theirs: HFLM) -> tuple[str, str]:
    """A context and the letter that the base would answer with."""
    for context in string.ascii_letters:
        ids = torch.tensor([theirs.tok_encode(context)])
        answer = theirs.tok_decode([int(theirs.model(ids).logits[0, -1].argmax())])
        if answer.isascii() and answer.isalnum():
            return context, answer
    raise AssertionError("no letter follows a letter")


def test_the_base_scores_as_lm_eval_s_own_adapter_does(runtime, theirs):
    """Context and continuation cut where it cuts them, bos once, every token of the continuation."""
    pairs = [*PAIRS, likeliest(theirs)]
    ours, known = model(runtime, ()).loglikelihood(requests(pairs)), theirs.loglikelihood(requests(pairs))
    assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in known], abs=2e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in known]
    assert {greedy for _, greedy in ours} == {True, False}


def test_the_base_answers_as_lm_eval_s_own_adapter_does(runtime, theirs):
    """Until a stop word, which is not part of the answer, or the most tokens. Of a batch, theirs
    looks for a bos of its own in the first context alone."""
    contexts = [context for context, _ in PAIRS if context and not context.startswith("<bos>")]

    def answers(lm, until: list[str]) -> list[str]:
        asked = [(context, {"until": until, "max_gen_toks": 7}) for context in contexts]
        return lm.generate_until(requests(asked, "generate_until"))

    whole = answers(model(runtime, ()), [])
    assert whole == answers(theirs, [])
    stop = next(letter for letter in whole[0][1:] if letter.isascii())
    cut = answers(model(runtime, ()), [stop])
    assert cut == answers(theirs, [stop])
    assert cut[0] == whole[0].partition(stop)[0]


def textbook(runtime: BundleRuntime, context: str, choice: str, weights: list[float]) -> float:
    """The text as a whole, alone, read once: no cache, no padding."""
    tokenizer, base = runtime.stacked.base.tokenizer, runtime.stacked.base.model
    ids, prompt = tokenizer.encode(context + choice), len(tokenizer.encode(context))
    with torch.no_grad(), runtime.stacked.tuner.gates(torch.tensor([weights]), DOMAINS):
        logits_TV = base(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    return sum(float(logits_TV[t - 1, ids[t]]) for t in range(prompt, len(ids)))


WHOLE = [pair for pair in PAIRS if pair[0].startswith(("aa", "a text")) and pair[0][-1] != " "]
WHOLE += [("bb beta2", " 2ateb"), ("bb beta2", " no")]


@pytest.mark.parametrize("on", [(), ("aa",), ("bb",), DOMAINS, None])
def test_every_choice_is_scored_under_its_prompt_s_gates(runtime, on):
    """Among other questions, and in ``routed`` under the gates that serving gives the prompt."""
    found = [nats for nats, _ in model(runtime, on).loglikelihood(requests(WHOLE))]
    gates = [runtime.gates([context])[0].tolist() for context, _ in WHOLE]
    weights = gates if on is None else [[float(domain in on) for domain in DOMAINS]] * len(WHOLE)
    expected = [textbook(runtime, *pair, w) for pair, w in zip(WHOLE, weights, strict=True)]
    assert found == pytest.approx(expected, abs=2e-4)


def test_the_meta_router_sees_the_context_alone(runtime):
    routed = model(runtime, None)
    routed.loglikelihood(requests(WHOLE))
    contexts = list(dict.fromkeys(context for context, _ in WHOLE))
    assert set(routed.routed_gates) == set(contexts)
    assert [routed.routed_gates[context] for context in contexts] == runtime.gates(contexts).tolist()
    assert len({tuple(gates) for gates in routed.routed_gates.values()}) > 1  # else this would say little


def test_in_the_template_a_question_is_routed_as_serving_routes_it(runtime):
    """And not with the template twice."""
    routed, question = model(runtime, None), "bb beta3"
    text = routed.apply_chat_template([{"role": "user", "content": question}])
    assert text == f"{question}\n\n### Response:\n"
    assert routed.gates([text]).tolist() == runtime.gates([question]).tolist()


def test_choices_of_one_token_and_of_many_share_a_batch(runtime):
    """Each has the score that it has alone."""
    questions = [Question((2, 9, 30), ((7,), (8, 9, 10), (11,))), Question((2, 40), ((5,), (6,)))]
    weights_BD = torch.tensor([[1.0, 0.25], [0.0, 1.0]])
    together = score_choices(runtime.stacked, questions, weights_BD, DOMAINS)
    for question, weights_D, scores in zip(questions, weights_BD, together, strict=True):
        for choice, (nats, _) in zip(question.choices, scores, strict=True):
            alone = score_choices(runtime.stacked, [Question(question.context, (choice,))], weights_D[None], DOMAINS)
            assert nats == pytest.approx(alone[0][0][0], abs=1e-4)
