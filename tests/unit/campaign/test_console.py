"""What a person reads: times, estimates and one line an event."""

import dataclasses
import io
import json
import subprocess
import sys
import time

import pytest

from bs_cluster.campaign.console import Console, EventLines, clock
from bs_cluster.events import (
    BundleReady,
    CheckpointTrouble,
    DomainClosed,
    Measuring,
    Phase,
    RoomScarce,
    RoundEnded,
    RoundResumed,
    RoundStarted,
    StepDone,
)
from bs_cluster.records import RoundOutcome, StackId


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "00:00"), (9.99, "00:09"), (187, "03:07"), (3599.9, "59:59"), (3600, "1:00:00"), (8100, "2:15:00")],
)
def test_clock(seconds, shown):
    assert clock(seconds) == shown


def step(number: int, **more) -> StepDone:
    done = StepDone(StackId("aa", 1), number, 40, 2.0 * number, "go on", 2.5, 1.0, 1.0, 0.5, 1e-4)
    return dataclasses.replace(done, **more)


@pytest.fixture
def told(capsys):
    """Shows events on one console; the lines without their time."""

    def told(*events, every_s: float = 0.0) -> list[str]:
        console = Console(every_s)
        for event in events:
            console.show(event)
        return [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]

    return told


def test_a_step_tells_how_long_the_round_will_take(told):
    (line,) = told(step(10))
    assert line.split() == ["aa_r1", "step", "10/40", "loss", "2.5000", "eta", "01:00"]


def test_the_last_step_has_no_time_left(told):
    (line,) = told(step(40, selection_loss=2.25))
    assert line.endswith("selection 2.2500  eta 00:00")


def test_steps_come_at_most_once_in_a_while_but_for_the_important_ones(told):
    lines = told(
        *(step(number) for number in range(1, 6)),
        step(6, selection_loss=2.4),
        step(7, verdict="restore"),
        step(8),
        every_s=60,
    )
    assert [line.split()[2] for line in lines] == ["1/40", "6/40", "7/40"]
    assert "bad step: restore" in lines[2]


def ended(**more) -> RoundEnded:
    outcome = RoundOutcome(StackId("aa", 2), 2.0, 2.1, -0.1, 0.05, 16, True, None, 40, 0, 61.0, "better")
    return RoundEnded(dataclasses.replace(outcome, **more))


def test_a_rejected_round_says_why(told):
    kept, turned_away = told(ended(), ended(committed=False, reason="no gain"))
    assert "committed  2.0000 -> 2.1000 on the 16 rows that decide  (01:01)" in kept
    assert "better" not in kept
    assert turned_away.endswith("no gain")


def test_a_round_taken_up_again_says_where_and_what_it_did_not_take(told):
    stack = StackId("aa", 1)
    lines = told(CheckpointTrouble(stack, 40, "not taken: it is damaged"), RoundResumed(stack, 20))
    assert lines == [
        "aa_r1          checkpoint of step 40: not taken: it is damaged",
        "aa_r1          goes on after step 20, from its checkpoint",
    ]


def test_scarce_room_names_the_site(told):
    (line,) = told(RoomScarce("model.layers.0.mlp.up_proj", "input", 640, 0.2))
    assert "leave 20% of the 640 directions that model.layers.0.mlp.up_proj reads" in line
    assert "null_space.max_share or max_rank" in line


def test_every_kind_of_event_is_told(told):
    lines = told(
        Phase("2 workers load base"),
        RoundStarted(StackId("aa", 1), 40),
        Measuring("aa", "its directions", 1, 2),
        DomainClosed("aa", 2.0, 3.0),
    )
    assert lines[0] == "2 workers load base"
    assert "training begins" in lines[1]
    assert "measures its directions  1/2 batches" in lines[2]
    assert "alone 2.0000, base 3.0000" in lines[3]
    assert len(lines) == 4


def test_no_silence_is_long_and_the_heartbeat_says_what_is_done(capsys):
    def lines_until(text: str) -> list[str]:
        """The lines up to one that begins with ``text``; a busy machine may take its time."""
        lines: list[str] = []
        deadline = time.monotonic() + 30.0
        while not any(line.startswith(text) for line in lines):
            assert time.monotonic() < deadline, lines
            time.sleep(0.05)
            lines += [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]
        return lines

    console = Console(silence_s=0.2)
    with console.heartbeat():
        console.begin("rows are read, split and encoded")
        assert lines_until("rows")[0] == "rows are read, split and encoded, 00:00 so far"
        assert len(lines_until("rows") + lines_until("rows")) >= 2
        console.show(DomainClosed("aa", 2.0, 3.0))
        lines_until("aa             is closed")
    capsys.readouterr()
    time.sleep(0.5)
    assert capsys.readouterr().out == ""  # it ends with its context


def test_a_heartbeat_is_not_heard_where_something_is_said(capsys):
    console = Console(silence_s=5.0)
    with console.heartbeat():
        for number in range(10):
            console.say(str(number))
            time.sleep(0.05)
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_every_loss_says_of_which_rows_it_is(told):
    lines = told(step(40, selection_loss=2.25), ended(), ended(committed=False), DomainClosed("aa", 2.0, 3.0))
    for line, rows in zip(
        lines, ("selection 2.25", "rows that decide", "rows that decide", "all its validation rows"), strict=True
    ):
        assert rows in line


def test_for_a_program_each_event_is_a_line_of_json_and_the_words_stay(capsys):
    out = io.StringIO()
    console = EventLines(out)
    console.show(step(1, loss=float("nan")))
    console.show(BundleReady(1, "champion", "the first bundle", {"loss/routed": 1.5}))
    first, last = map(json.loads, out.getvalue().splitlines())
    assert (first["event"], first["stack"], first["loss"]) == ("StepDone", {"domain": "aa", "round": 1}, None)
    assert {key: last[key] for key in ("event", "number", "alias", "metrics")} == {
        "event": "BundleReady",
        "number": 1,
        "alias": "champion",
        "metrics": {"loss/routed": 1.5},
    }
    assert first["at"] <= last["at"]
    assert "bundle         1 is champion: the first bundle" in capsys.readouterr().out


def test_standard_output_is_for_the_program_alone():
    program = (
        "import os\n"
        "from bs_cluster.campaign.console import EventLines, words_on_stderr\n"
        "from bs_cluster.events import Phase\n"
        "console = EventLines(words_on_stderr())\n"
        "print('words')\n"
        "os.system('echo of a child')\n"
        "console.show(Phase('training'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["training"]
    assert done.stderr.count("words") == done.stderr.count("of a child") == 1
