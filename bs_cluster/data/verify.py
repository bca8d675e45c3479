"""Is an answer right? Each row names the verifier that tells: a pure function of prompt, reference and answer.

Of an answer to a row whose reference is one line, ``exact`` and ``number`` look at the first line: a model that goes on
after its answer has answered all the same.

| verifier | right is |
|---|---|
| ``exact`` | the reference's words; case, spaces, quotes around them and a full stop at their end do not count |
| ``number`` | the reference's last number |
| ``calls`` | the reference's function calls, in any order, as JSON or in Python's syntax (``calls``) |
| ``tests`` | code, the first fenced block where there is one, under which the row's unit tests pass (``sandbox``) |
| ``reasoning_gym`` | what the generator's own scorer gives the full mark |
| ``package.module:function`` | what that function says is |
| ``none`` | nothing: the row cannot be checked |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bs_cluster.config import plugins
from bs_cluster.config.sources import SourceSection
from bs_cluster.data.calls import FENCED, calls_in
from bs_cluster.data.procedural import first_line, gym_accepts, last_number
from bs_cluster.data.rows import UNCHECKED, Check, Question
from bs_cluster.data.sandbox import ends_well
from bs_cluster.errors import DataError


def row_check(raw: Mapping[str, Any], source: SourceSection) -> Check:
    """How answers to a source's raw row are checked: as the source says, else as the row itself does.

    Raises DataError for a row without the unit tests that its source promises.
    """
    if source.verify is None:
        own = raw.get("check")
        return own if isinstance(own, Check) else UNCHECKED
    if source.tests is None:
        return Check(source.verify)
    tests = raw.get(source.tests)
    if isinstance(tests, list):
        tests = "\n".join(map(str, tests))
    if not isinstance(tests, str) or not tests.strip():
        raise DataError(f"a row has no unit tests in its column {source.tests!r}; it has {sorted(raw)}")
    return Check("tests", tests)


def is_right(question: Question, answer: str) -> bool:
    """Whether ``answer`` answers the question as its check asks. A row that cannot be checked has no right answer.

    Raises ConfigError where the check's function is not on this machine.
    """
    reference, check = question.reference, question.check
    match check.verifier:
        case "none":
            return False
        case "exact":
            return _words(_part(reference, answer)) == _words(reference) != ""
        case "number":
            return _same_number(reference, answer)
        case "calls":
            return calls_in(answer) == calls_in(reference) != ()
        case "tests":
            return ends_well(f"{code_of(answer)}\n\n{check.key}")
        case "reasoning_gym":
            return gym_accepts(check.key, answer)
        case place:
            return bool(plugins.function_at(place)(question.prompt, reference, answer))


def _part(reference: str, answer: str) -> str:
    """What of an answer is compared: all of it where the reference has several lines, else its first line."""
    return answer if "\n" in reference.strip() else first_line(answer)


def _words(text: str) -> str:
    return " ".join(text.casefold().split()).strip("\"'“”‘’` ").rstrip(". ")


def _same_number(reference: str, answer: str) -> bool:
    """Whether the answer's last number is the reference's; a reference of one line is compared with the first line."""
    found, wanted = (last_number(" ".join(text.split())) for text in (_part(reference, answer), reference))
    return found is not None and wanted is not None and float(found) == float(wanted)


def code_of(answer: str) -> str:
    """The answer's first fenced block, else all of it."""
    fenced = FENCED.search(answer)
    return fenced[1] if fenced else answer
