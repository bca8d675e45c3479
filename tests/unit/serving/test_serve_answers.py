"""``bs_cluster serve`` asked by OpenAI's own client: what it answers is what ``bs_cluster generate`` answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests
from serving import KEY

from bs_cluster.data.encode import encode_prompt

PROMPTS = ("aa alpha12", "bb beta3", "bb a longer prompt than the other", "something else")
NEW = 24

pytestmark = pytest.mark.slow


@pytest.fixture
def client(served):
    with served.client() as client:
        yield client


def chat(client, prompt: str, model: str = "tiny", **more):
    settings = {"temperature": 0, "max_tokens": NEW} | more
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}], **settings)


def text(answer) -> str:
    return answer.choices[0].message.content


def generated(runtime, prompt: str, gates: dict[str, float] | None = None, new: int = NEW):
    weights_BD = None if gates is None else runtime.fixed_gates([name for name, on in gates.items() if on], 1)
    return runtime.answer([prompt], weights_BD, new)[0]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_greedy_answer_is_generate_s_and_so_are_its_gates(client, runtime, prompt):
    answer, wanted = chat(client, prompt), generated(runtime, prompt)
    assert (text(answer), answer.gates) == (wanted.text, dict(wanted.gates))
    completion = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=NEW)
    assert (completion.choices[0].text, completion.gates) == (wanted.text, dict(wanted.gates))


@pytest.mark.parametrize("model", ["tiny:aa", "tiny:bb", "tiny:base"])
def test_a_domain_alone_and_the_base_are_models(client, runtime, model):
    on = model.split(":")[1]
    gates = {domain: float(domain == on) for domain in runtime.domains}
    answer = chat(client, PROMPTS[0], model)
    assert (text(answer), answer.gates) == (generated(runtime, PROMPTS[0], gates).text, gates)


def test_models_are_listed_with_what_they_fire(client):
    models = {model.id: model.gates for model in client.models.list()}
    fixed = {"tiny:aa": {"aa": 1, "bb": 0}, "tiny:bb": {"aa": 0, "bb": 1}, "tiny:base": {"aa": 0, "bb": 0}}
    assert models == {"tiny": None, "tiny@champion": None, **fixed}
    assert client.models.retrieve("tiny:aa").bundle == 1


def test_an_alias_is_the_bundle_that_has_it(client):
    assert text(chat(client, PROMPTS[1], "tiny@champion")) == text(chat(client, PROMPTS[1]))
    assert chat(client, PROMPTS[1]).system_fingerprint == "bundle-1"


@pytest.mark.parametrize("gates", [{"aa": 1}, {"bb": 1.0, "aa": 1.0}, {}])
def test_gates_are_settable(client, runtime, gates):
    answer = chat(client, PROMPTS[0], extra_body={"gates": gates})
    whole = {domain: float(gates.get(domain, 0)) for domain in runtime.domains}
    assert (text(answer), answer.gates) == (generated(runtime, PROMPTS[0], whole).text, whole)


def test_a_gate_may_be_anything_from_0_to_1(client):
    half = chat(client, PROMPTS[0], extra_body={"gates": {"aa": 0.5}})
    assert half.gates == {"aa": 0.5, "bb": 0}
    assert text(half) not in [text(chat(client, PROMPTS[0], model)) for model in ("tiny:aa", "tiny:base")]


def test_a_stream_is_the_answer_in_pieces(client):
    whole = chat(client, PROMPTS[2])
    chunks = list(chat(client, PROMPTS[2], stream=True, stream_options={"include_usage": True}))
    *said, last, used = chunks
    pieces = [chunk.choices[0].delta.content or "" for chunk in said]
    assert "".join(pieces) == text(whole)
    assert len([piece for piece in pieces if piece]) > 1
    assert all(chunk.gates == whole.gates for chunk in chunks)
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert used.usage == whole.usage
    streamed = client.completions.create(model="tiny", prompt=PROMPTS[2], temperature=0, max_tokens=NEW, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text(whole)


def test_usage_counts_tokens(client, runtime):
    answer = chat(client, "aa x", max_tokens=5)
    prompt = len(encode_prompt("aa x", runtime.stacked.base.tokenizer, runtime.config.data))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 5)
    assert answer.usage.total_tokens == prompt + 5
    assert answer.choices[0].finish_reason == "length"


def test_many_at_once_are_each_answered_as_alone(client):
    """Routed, by domain, by gates, sampled: different gates in one batch, and more of them than slots."""
    asked = [
        (prompt, model, more)
        for prompt in PROMPTS
        for model, more in (
            ("tiny", {}),
            ("tiny:aa", {"temperature": 1.3, "seed": 5}),
            ("tiny:base", {"max_tokens": 40}),
            ("tiny", {"extra_body": {"gates": {"aa": 0.3, "bb": 0.9}}, "temperature": 0.8, "top_p": 0.9, "seed": 1}),
            ("tiny:bb", {"stop": ["q", "z"]}),
        )
    ]
    alone = [text(chat(client, prompt, model, **more)) for prompt, model, more in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda one: text(chat(client, one[0], one[1], **one[2])), asked))
    assert together == alone
    assert len(set(alone)) > len(asked) // 2


def test_seeds_are_reproducible(client):
    def drawn(seed: int) -> str:
        return text(chat(client, PROMPTS[3], temperature=1.5, top_p=0.95, seed=seed))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_an_answer_ends_before_a_stop(client):
    whole = text(chat(client, PROMPTS[0]))
    stop = whole[3:5]
    answer = chat(client, PROMPTS[0], stop=stop)
    assert text(answer) == whole[: whole.index(stop)].strip()
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < NEW


def test_a_conversation_is_encoded_as_in_training(client, runtime):
    """Under a template for single prompts each turn names its speaker, and what a system says comes first."""
    turns = [("user", "a"), ("assistant", "X"), ("user", "b")]
    messages = [{"role": "system", "content": "brief"}, *({"role": r, "content": c} for r, c in turns)]
    answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=NEW)
    assert text(answer) == generated(runtime, "brief\n\nUser: a\n\nAssistant: X\n\nUser: b").text


def test_what_a_client_says_it_does_not_want_may_stand_there(client):
    more = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "max_completion_tokens": 3}
    assert chat(client, "aa x", max_tokens=None, **more).usage.completion_tokens == 3


def refused(client, prompt: str = "aa x", model: str = "tiny", **more) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as told:
        chat(client, prompt, model, **more)
    return told.value


@pytest.mark.parametrize(
    ("more", "status", "code", "param", "words"),
    [
        ({"model": "tinny"}, 404, "model_not_found", "model", "no model 'tinny'; there are tiny"),
        (
            {"extra_body": {"gates": {"cc": 1}}},
            400,
            "invalid_value",
            "gates",
            "'cc' is not in the bundle; it has aa, bb",
        ),
        ({"extra_body": {"gates": {"aa": 1.5}}}, 400, "invalid_value", "gates", "less than or equal to 1"),
        ({"extra_body": {"gates": {"aa": 1}}, "model": "tiny:bb"}, 400, "invalid_value", "gates", "fixes the gates"),
        ({"temperature": 3}, 400, "invalid_value", "temperature", "less than or equal to 2"),
        ({"max_tokens": 513}, 400, "invalid_value", "max_tokens", "at most 512"),
        ({"prompt": "x" * 61}, 400, "context_length_exceeded", "messages", "at most 60 tokens"),
        ({"prompt": "y" * 100_000}, 400, "context_length_exceeded", "messages", "at most 60 tokens"),
        ({"prompt": " "}, 400, "invalid_value", "messages", "say something"),
        ({"n": 2}, 400, "unsupported_parameter", "n", "not served"),
        ({"presence_penalty": 0.5}, 400, "unsupported_parameter", "presence_penalty", "not served"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            400,
            "unsupported_parameter",
            "tools",
            "not served",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_in_openai_s_shape(client, more, status, code, param, words):
    error = refused(client, **more)
    assert (error.status_code, error.code, error.param) == (status, code, param)
    assert words in error.body["message"]
    assert error.body["type"] == "invalid_request_error"
    assert "y" * 50 not in str(error)  # what was sent is not repeated


def test_a_wrong_key_and_none_are_refused(served):
    with served.client("sk-wrong") as client, pytest.raises(openai.AuthenticationError) as told:
        chat(client, "aa x")
    assert told.value.code == "invalid_api_key"
    for sent in (b"", b"Bearer", b"Bearer sk-wrong", "Bearer é".encode(), f"Basic {KEY}".encode(), KEY.encode()):
        answer = requests.get(f"{served.url}/v1/models", headers={"Authorization": sent}, timeout=10)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert served.get("/v1/models").status_code == 401
    for path in ("/", "/health", "/ready", "/metrics"):
        assert served.get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"[]", 400),
        ("POST", "/v1/chat/completions", b"x" * (1 << 20) + b"x", 413),
        ("POST", "/v1/completions", None, 415),
        ("GET", "/v1/chat/completions", b"", 405),
        ("GET", "/v1/models/none", b"", 404),
        ("POST", "/v1/embeddings", b"{}", 404),
        ("GET", "/nothing", b"", 404),
    ],
)
def test_what_is_no_request_is_told_in_the_same_shape(served, method, path, body, status):
    headers = {"Authorization": f"Bearer {KEY}"} | ({} if body is None else {"Content-Type": "application/json"})
    answer = requests.request(method, served.url + path, data=body, headers=headers, timeout=10)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
