"""How `bpfleet observe` takes its words, and how it shows events and flows."""

from __future__ import annotations

import json
import threading
import time
from typing import Any, Callable, Dict, Iterable, Iterator

import pytest

from bpfleet.cli import observe, observed, streams
from bpfleet.cli.asking import PROMPT_SECONDS, Asked
from bpfleet.cli.main import main
from bpfleet.observe.filters import KEYS
from bpfleet.transport.target import Target
from tests.unit.observe_support import event, flow

OF_SEEDS = ("jump", "identity-file", "known-hosts")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--not", "--not stands before no filter"),
        ("--follow --history", "cannot be followed"),
        ("--history --from-ip 10.0.0.1", "does not keep addresses"),
        ("--ip 10.0", "is no address"),
        ("--drop-reason x", "is no reason to drop"),
        ("--input-file /nonexistent", "cannot be read"),
        ("--input-file x --follow", "a file cannot be followed"),
        ("--input-file x --lab", "field input-file: a file and nodes are not looked at together"),
        ("--input-file x --seed 192.0.2.1", "field input-file: a file and nodes are not looked at together"),
        ("--input-file x --since 1m --until 1h", "field until: nothing is both after"),
        ("--history --since 1m --until 1h", "field until: nothing is both after"),
        ("--since 9998-12-31T00:00:00", "field since: --since is still to come: 9998-12-31 00:00:00"),
        ("--history --since 999999999999", "field since: --since is still to come: 33658-09-27"),
        ("--lab --seed 192.0.2.1", "--lab and --seed name different nodes"),
        *((f"--lab --{name} x", f"--{name} is about seeds, and none is given") for name in OF_SEEDS),
        ("--seed 192.0.2.1 --jump hop@", "field jump: 'hop@' is no host"),
        ("--seed 192.0.2.1 --jump hop:70000", "field jump: port 70000 is out of range"),
    ],
)
def test_what_cannot_be_asked(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", *words.split()]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    ["--since 1h", "--until 1h", "--last 3", "-f", "--follow", "--history", "--input-file x", "-o json", "--lab",
     "--seed h", "--jump h", "--identity-file x", "--known-hosts x", "--not"],
)  # fmt: skip
def test_not_before_what_is_no_filter_is_refused_by_name(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["observe", "--not", *option.split(), "--verdict", "allowed"])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert option.split()[0] in said and "--not" in said


@pytest.mark.parametrize(
    "words",
    [
        "--since soon",
        f"--since {'9' * 5_000}",
        f"--last {'9' * 5_000}",
        "--last ²",
        "--last x",
        "--verdict maybe",
        "-o yaml",
    ],
)
def test_what_does_not_parse(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["observe", *words.split()])
    assert words.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 10_000 - 90),
        ("1.5m", 10_000 - 90),
        ("2h", 10_000 - 7200),
        ("1d", 10_000 - 86400),
        ("1767225600.5", 1767225600.5),
        ("1970-01-01T02:00:00+00:00", 7200),
        ("1970-01-01T02:00:00Z", 7200),
    ],
)
def test_moments(text: str, seconds: float) -> None:
    assert observe.moment(text, 10_000.0) == seconds


def test_a_time_is_of_this_day() -> None:
    now = time.mktime((2026, 3, 4, 15, 0, 0, 0, 0, -1))
    assert observe.moment("13:05", now) == time.mktime((2026, 3, 4, 13, 5, 0, 0, 0, -1))
    assert observe.moment("9:05:07", now) == time.mktime((2026, 3, 4, 9, 5, 7, 0, 0, -1))


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["observe", "--help"])
    text = capsys.readouterr().out
    assert "--history" in text and "--not" in text and "examples:" in text
    for key in KEYS:
        if key.rpartition("-")[2] != "any":
            assert f"--{key} " in text, key


def test_losses_clocks_and_what_is_not_kept_are_said() -> None:
    found = streams.Streams(None, [])  # type: ignore[arg-type]
    counts = {"packets": 2, "bytes": 100, "answer_packets": 1, "answer_bytes": 60}
    none = dict.fromkeys(counts, 0)
    found.lost = {"h1": 3}
    found._notices = {
        "h1": (1000.0, {"clock": 1004.0, "kept_from": 900.0}),
        "h2": (1000.0, {"clock": 1000.1, "kept": 9, "limit": 9, "did_not_fit": {"passed": counts, "dropped": none},
                        "retired": {"passed": 0, "dropped": 5}}),
    }  # fmt: skip
    said = found.said(since=800.0)
    assert said[0] == "in all, h1: 3 events were overwritten before they were read"
    assert said[1] == "the clock of h1 is 4.0 s ahead of this machine's: so are its times"
    assert said[2].startswith("h1 no longer keeps all events from before ")
    assert said[3].startswith("h2: 3 packets (160 bytes) that were passed are in no flow above")
    assert said[4] == "h2: 5 idle flows that were dropped gave their place to new ones"
    assert len(found.said(since=None)) == 4


class Slow:
    """In place of a Fleet: h1 and h2 answer, h3 once it is let, and the host h4 holds nothing of bpfleet."""

    def __init__(self) -> None:
        self.let = threading.Event()

    def installed(self, node: Target) -> Any:
        if node.name == "h3":
            self.let.wait()
        return None if node.name == "h4" else {"node": node.name}

    def each(self, nodes: Iterable[Target], work: Callable[[Target], Any]) -> Dict[str, Any]:
        return {node.name: work(node) for node in nodes}

    def stream(self, node: Target, method: str, params: Any) -> Iterator[Dict[str, Any]]:
        for number in (1, 2):
            yield {"verdict": "allowed", "time": number + int(node.name[1]) / 10}
        yield {"clock": time.time(), "time": 5.0}


def test_a_node_that_does_not_answer_keeps_nobody_waiting(capsys: pytest.CaptureFixture[str]) -> None:
    fleet: Any = Slow()
    found = streams.Streams(fleet, [Target(name, name) for name in ("h1", "h2", "h3", "h4")])
    lines = found.kept({}, 3)
    assert [next(lines)["time"] for _ in range(3)] == [1.2, 2.1, 2.2]
    fleet.let.set()
    # Of all the newest three are 2.1, 2.2 and 2.3: what comes late adds one.
    assert [line["time"] for line in lines] == [2.3]
    said = capsys.readouterr().err
    assert "not answered yet: h3\n" in said and "node h4: holds nothing of bpfleet" in said
    assert set(found.failures) == {"h4"}


def test_nodes_that_answer_one_after_another_are_all_waited_for() -> None:
    """Of a large fleet only a few are dialled at a time: the last is heard long after the first."""
    turns = [threading.Event() for _ in range(5)]
    turns[0].set()

    def question(node: Target) -> str:
        number = int(node.name[1])
        turns[number].wait()
        time.sleep(PROMPT_SECONDS / 3)
        turns[number + 1].set()
        return node.name

    nodes = [Target(f"h{number}", "") for number in range(4)]
    assert [answer for _, answer in Asked(nodes, question).prompt()] == ["h0", "h1", "h2", "h3"]


def test_events_for_people() -> None:
    assert observed.render(event()).endswith("tcp      web-1:40000 -> api-1:80  api ingress[0]")
    dropped = event(verdict=4, reason=26, rule_id=0)
    assert observed.render(dropped).endswith("spoofed source")
    assert "no longer declared" in observed.render({**event(), "gone": "yes"})
    assert observed.render({**event(), "changed": "yes"}).endswith("api ingress[0] (changed since)")
    assert "h1: 3 events were overwritten" in observed.lost({"lost": 3, "time": 1.0, "node": "h1"})
    assert observed.compact(event()).endswith("h1: web-1:40000 -> api-1:80 tcp ingress ALLOWED (api ingress[0])")


@pytest.mark.parametrize("output", ["compact", "table", "dict"])
def test_what_old_policies_say_of_themselves_stays_in_its_line(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    described = {**event(), "description": 'ok"\nNov 28: forged\x1b[2J\u2028\x9b1m', "policy_labels": {"a\r": "\x07"}}
    observed.Printer(output).show(described)
    told = capsys.readouterr().out
    assert "\\nNov 28: forged\\x1b[2J\\u2028\\x9b1m" in told
    assert not any(found for found in told.replace("\n", "") if not found.isprintable())
    observed.Printer("json").show(described)
    assert json.loads(capsys.readouterr().out) == described


def test_flows_for_people() -> None:
    columns = observed.render(flow()).split()
    assert columns[2:] == ["h1", "allowed", "ingress", "tcp", "7", "1.5k", "6", "12M", "web", "->", "api:80", "api",
                           "ingress[0]"]  # fmt: skip
    assert observed.header(flow()).split()[:2] == ["LAST", "SEEN"]
    assert "icmp 8.0" in observed.render(flow(protocol=1, port=8 << 8))
    text = observed.compact(flow())
    assert "7 packets, 1500 bytes; answers 6, 12345678; since " in text
    lines = observed.fields(flow()).splitlines()
    assert "packets: 7" in [line.strip() for line in lines]


@pytest.mark.parametrize("line", [event(protocol=1), event(verdict=4, reason=26, rule_id=0), flow()])
def test_fields_stand_in_one_order_from_nodes_and_from_a_recording(line: Dict[str, Any]) -> None:
    shown = observed.fields(line)
    assert observed.fields(json.loads(json.dumps(line, sort_keys=True))) == shown
    names = [row.partition(":")[0].strip() for row in shown.splitlines()]
    assert names.index("verdict") < names.index("source") < names.index("destination") == names.index("source") + 1
    assert "more: 1" in observed.fields({"more": 1, **line})


def test_on_a_terminal_a_table_elsewhere_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    observed.Printer(None).show(event())
    assert capsys.readouterr().out == observed.compact(event()) + "\n"
    printer = observed.Printer("table")
    for line in (event(), {"lost": 2, "time": 1.0, "node": "h1"}, event()):
        printer.show(line)
    told = capsys.readouterr()
    assert told.out.startswith("TIME")
    assert len(told.out.splitlines()) == 3 and printer.shown == 2
    assert "2 events were overwritten" in told.err
    observed.Printer("json").show({"lost": 2, "time": 1.0, "node": "h1"})
    assert json.loads(capsys.readouterr().out)["lost"] == 2
