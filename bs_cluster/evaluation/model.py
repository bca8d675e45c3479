"""A bundle as lm-eval sees a model. Text becomes tokens as lm-eval's own HFLM makes them: bos once, a choice's tokens
are what follows the context's in the text as a whole. The meta-router sees the context alone, as it is served: one
prompt's gates are those of all its choices.

Shapes: B prompts, D domains.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from bs_cluster.data.batch import plan_batches
from bs_cluster.data.encode import prompt_text
from bs_cluster.errors import DataError
from bs_cluster.evaluation.choices import Likelihood, Question, score_choices
from bs_cluster.serving.engine import Engine, Row
from bs_cluster.serving.runtime import BundleRuntime
from bs_cluster.serving.sampling import Sampling

SAY_EVERY_S = 30.0
SLOTS = 8  # answers under way at once

Encoded = tuple[tuple[str, str], list[int], list[int]]  # context and continuation: as text, then as tokens


class BundleLM(TemplateLM):
    """A bundle with the domains ``on`` at full strength, or routed where it is None. ``routed_gates`` maps each context
    that was seen to its gate weights, one per domain of the bundle."""

    def __init__(self, runtime: BundleRuntime, on: Sequence[str] | None, batch_tokens: int, say: Callable[[str], None]):
        super().__init__()
        self.runtime, self.tokenizer = runtime, runtime.stacked.base.tokenizer
        self.routed_gates: dict[str, list[float]] = {}
        self._questions: dict[str, str] = {}  # by the text that each became in the template
        self._on, self._batch_tokens, self._say = on, batch_tokens, say

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id  # type: ignore[return-value]

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos  # type: ignore[return-value]

    @property
    def max_length(self) -> int:
        """Tokens of context and continuation together."""
        return self.runtime.stacked.base.model.config.get_text_config().max_position_embeddings

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval would keep templated questions under."""
        return f"{self.tokenizer.name_or_path} {self.runtime.config.data.template}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, bos before them unless ``add_special_tokens`` is False or the text brings its own."""
        ids = self.tokenizer.encode(string, add_special_tokens=False, verbose=False)
        bos = self.tokenizer.bos_token_id
        return ids if add_special_tokens is False or bos is None or ids[:1] == [bos] else [bos, *ids]  # type: ignore[list-item]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The question in the campaign's template, as training and serving write it; what an answer is to begin with
        comes after. The meta-router gets the question and puts it into the template itself."""
        question, *begun = [turn["content"] for turn in chat_history]
        text = prompt_text(question, self.runtime.config.data.template, self.tokenizer) + "".join(begun)
        self._questions[text] = question
        return text

    def gates(self, contexts: Sequence[str]) -> torch.Tensor:
        """Gate weights (B, D) of these prompts."""
        if self._on is not None:
            return self.runtime.fixed_gates(self._on, len(contexts))
        new = [context for context in dict.fromkeys(contexts) if context not in self.routed_gates]
        ids = [self.runtime.router_ids(self._questions.get(context, context)) for context in new]
        for batch in plan_batches([len(prompt) for prompt in ids], self._batch_tokens):
            weights = self.runtime.route([ids[i] for i in batch]).tolist()
            self.routed_gates |= {new[i]: row for i, row in zip(batch, weights, strict=True)}
        return torch.tensor([self.routed_gates[context] for context in contexts])

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Likelihood]:
        return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **_: Any) -> list[Likelihood]:
        """All tokens of each continuation, after its context; a context too long loses its start, as HFLM cuts it."""
        asked: defaultdict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
        for place, ((context, continuation), context_ids, ids) in enumerate(requests):
            if not 0 < len(ids) <= self.max_length:
                raise DataError(
                    f"a choice of {len(ids)} tokens ({continuation[:40]!r}) cannot be scored by a model that reads "
                    f"{self.max_length}; leave its row out"
                )
            asked[context, tuple(context_ids[-(self.max_length + 1 - len(ids)) :])].append(place)
        questions = [Question(ids, tuple(tuple(requests[p][2]) for p in own)) for (_, ids), own in asked.items()]
        contexts, places = [context for context, _ in asked], list(asked.values())
        weights_BD, scored, told = self.gates(contexts), 0, time.monotonic()
        found: dict[int, Likelihood] = {}
        for batch in plan_batches([question.area for question in questions], self._batch_tokens):
            chosen = [questions[i] for i in batch]
            scores = score_choices(self.runtime.stacked, chosen, weights_BD[batch], self.runtime.domains)
            for i, choices in zip(batch, scores, strict=True):
                found |= zip(places[i], choices, strict=True)
            scored += len(batch)
            if time.monotonic() - told > SAY_EVERY_S:
                told = time.monotonic()
                self._say(f"{scored} of {len(questions)} prompts")
        return [found[place] for place in range(len(requests))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy answers, each until its task's stop words, the end token or as many tokens as it allows (or 256)."""
        given: list[Any] = [request.args for request in requests]
        contexts = [str(context) for context, _ in given]
        asked: list[Any] = [normalize_gen_kwargs(kwargs) for _, kwargs in given]
        rows = []
        for context, wanted, gates in zip(contexts, asked, self.gates(contexts).tolist(), strict=True):
            ids = self.tok_encode(context)[-(self.max_length - wanted["max_gen_toks"]) :]
            named = dict(zip(self.runtime.domains, gates, strict=True))
            rows.append(Row(ids, named, Sampling(), wanted["max_gen_toks"]))
        until = {row: wanted["until"] for row, wanted in zip(rows, asked, strict=True)}
        waiting = sorted(rows, key=lambda row: row.length)
        engine = Engine(self.runtime.stacked, SLOTS, max(row.length + row.max_tokens for row in rows))
        while waiting or engine.rows:
            if joining := [waiting.pop() for _ in range(min(engine.free, len(waiting)))]:
                engine.join(joining)
            for row in engine.step() if engine.rows else ():
                if row.ended is None and any(stop in self._text(row) for stop in until[row]):
                    engine.leave(row)
        return [postprocess_generated_text(self._text(row), until[row], None) for row in rows]

    def _text(self, row: Row) -> str:
        return str(self.tokenizer.decode(row.tokens, skip_special_tokens=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        raise DataError("a text without a prompt cannot be routed")
