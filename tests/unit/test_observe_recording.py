"""`bpfleet observe --input-file`: what was recorded passes the same filters, and what is no recording is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfleet.cli import observed, recording
from bpfleet.cli.main import main
from bpfleet.observe.filters import Filter
from tests.unit.observe_support import COUNTS, NUMBER, at, flow


def test_recorded_events_pass_the_same_filters() -> None:
    lines = [at(3.0), at(1.0, verdict=2), {"lost": 4, "time": 2.5, "node": "h2"}, {**at(2.0), "node": "h2"}]

    def found(filters: Any = (), since: Any = None, until: Any = None, last: int = -1) -> List[float]:
        return [line["time"] for line in recording.replayed(lines, list(filters), since, until, last)]

    assert found() == [1.0, 2.0, 2.5, 3.0]
    assert found([Filter("verdict", "denied")]) == [1.0, 2.5]
    assert found([Filter("verdict", "denied", True)]) == [2.0, 2.5, 3.0]
    assert found(since=2.0) == [2.0, 2.5, 3.0]
    assert found(until=2.0) == [1.0, 2.0], "nor is what was lost later a loss of that time"
    assert found(since=2.7) == [3.0]
    assert found(last=1) == [2.5, 3.0]
    assert found(last=0) == [2.5]


def test_recorded_flows_by_when_they_were_seen() -> None:
    lines = [flow()]  # from 1002.5 to 1010.7
    for since, until, kept in ((1010, None, 1), (1011, None, 0), (None, 1003, 1), (None, 1002, 0), (1005, 1006, 1)):
        assert len(recording.replayed(lines, [], since, until, -1)) == kept


def test_a_file_is_looked_at_without_nodes(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "events.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in (at(1.0), at(2.0, verdict=2), flow())))
    assert main(["observe", "--input-file", str(file), "--verdict", "denied", "-o", "json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == at(2.0, verdict=2)
    assert main(["observe", "--input-file", str(file), "--history", "--not", "--verdict", "denied", "-o", "json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [flow()]
    assert main(["observe", "--input-file", str(file), "--verdict", "audited"]) == 0
    assert "none of the 3 lines" in capsys.readouterr().err


def replay(tmp_path: Any, lines: Any, words: str) -> int:
    """`observe` of a recording called f. lines: of which those that are no text yet are made such."""
    file = tmp_path / "f"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return main(["observe", "--input-file", str(file), *words.split()])


@pytest.mark.parametrize("history", ["", " --history"])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--ip 10.0.0.1", "field ip: the history does not keep addresses"),
        ("--not --ip 10.0.0.1", "field ip: the history does not keep addresses"),
        ("--not --from-port 5", "field from-port: the history does not keep the ports of senders"),
        ("--not --to-node h2", "field to-node: the history does not keep the nodes of both ends"),
        ("--not --from 10.0.0.1", "field from: the history does not keep addresses"),
        ("--with h1", "field with: the history does not keep the nodes of both ends"),
    ],
)
def test_a_recorded_history_has_not_what_the_history_does_not_keep(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], words: str, says: str, history: str
) -> None:
    """However it is asked: an answer without it would be none, or all."""
    assert replay(tmp_path, [flow(), KEPT], words + history) == 2
    told = capsys.readouterr()
    assert says in told.err and not told.out
    assert replay(tmp_path, [at(1.0), {"lost": 1, "time": 2.0}], words) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--from wep-1", "f: 'wep-1' is no address, endpoint, identity, node or label (did you mean web-1?)"),
        ("--label app=wep", "f: no identity has the label app=wep (did you mean app=web?)"),
        ("--not --policy apj", "f: there is no policy apj (did you mean api?)"),
        ("--identity 7", "f: there is no identity 7"),
        ("--to-endpoint web", "f: there is no endpoint web (did you mean web-1?)"),
        ("--node hh1", "f: there is no node hh1 (did you mean h1?)"),
        ("--not --node h9", "f: there is no node h9 (did you mean h1?)"),
        ("--from web-1 --to api --policy api --label tier --to-node h1 --identity world", ""),
        (f"--identity {NUMBER['api']}", ""),
        ("--policy team=shop", ""),
        ("--policy db", ""),
    ],
)
def test_names_that_no_recorded_line_has_are_said(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], words: str, says: str
) -> None:
    lines = [at(1.0), {**at(2.0), "policy": "web, db", "policy_labels": {"team": "shop"}}]
    assert replay(tmp_path, lines, words) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "none of the" not in line]
    assert [line.partition(str(tmp_path) + "/")[2] for line in said] == ([says] if says else [])


@pytest.mark.parametrize("words", ["--node h9", "--history", "--node h1 --port 9", "--policy nobody --node h2"])
def test_lines_of_which_none_matches_are_all_counted(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert replay(tmp_path, [at(1.0), at(2.0), {"lost": 1, "time": 2.0}], words) == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"bpfleet: none of the 2 lines of {tmp_path}/f matches"


KEPT = {
    "clock": 9.0,
    "time": 9.0,
    "node": "h1",
    "kept": 1,
    "limit": 4,
    "did_not_fit": {"passed": {**COUNTS, "packets": 30}, "dropped": dict.fromkeys(COUNTS, 0)},
    "retired": {"passed": 0, "dropped": 2},
}
"""What ends the history of a node."""


@pytest.mark.parametrize("output", ["json", "compact", "table", "dict"])
def test_a_recorded_history_says_what_it_does_not_hold(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    file = tmp_path / "flows.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in (flow(), KEPT, {**KEPT, "node": "h2", "limit": 8})))
    words = ["observe", "--input-file", str(file), "--history", "--last", "1", "--not", "--node", "h2", "-o", output]
    assert main(words) == 0
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        f"bpfleet: h1: 36 packets ({COUNTS['bytes'] + COUNTS['answer_bytes']} bytes) that were passed are in no flow "
        "above: they did not fit among the 4 that the history keeps",
        "bpfleet: h1: 2 idle flows that were dropped gave their place to new ones",
    ]
    if output == "json":
        assert [json.loads(line) for line in told.out.splitlines()] == [KEPT, flow()]
    else:
        assert "did not fit" not in told.out


def test_not_before_a_node_leaves_out_what_it_judged(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "events.json"
    lines = [{**at(number, verdict=verdict), "node": node} for number, (node, verdict) in enumerate(
        [("h1", 1), ("h1", 2), ("h2", 1), ("h2", 2), ("h3", 1)])]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def found(words: str) -> List[Tuple[str, str]]:
        assert main(["observe", "--input-file", str(file), "-o", "json", *words.split()]) == 0
        shown = map(json.loads, capsys.readouterr().out.splitlines())
        return [(line["node"], line["verdict"]) for line in shown]

    assert found("--not --node h1 --verdict allowed") == [("h2", "allowed"), ("h3", "allowed")]
    assert found("--node h1 --not --verdict allowed") == [("h1", "denied")]
    assert found("--not --node h1 --not --node h2") == [("h3", "allowed")]
    assert found("--node h1 --not --node h1") == []


@pytest.mark.parametrize("count", [1, 5_000])
def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Any, count: int) -> None:
    file = tmp_path / "events.json"
    file.write_text((json.dumps(at(1.0)) + "\n") * count)
    words = [sys.executable, "-m", "bpfleet.cli.main", "observe", "--input-file", str(file), "--last", str(count)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def without(line: Dict[str, Any], *names: str) -> Dict[str, Any]:
    return {name: value for name, value in line.items() if name not in names}


ODD: List[Tuple[Any, str]] = [
    ("no json", "no JSON"),
    ("[" * 100_000, "no JSON"),
    ("9" * 5_000, "no JSON"),
    ('{"time": 1, "lost": 1, "more": ' + "[" * 100 + "]" * 100 + "}", "too deep"),
    ("[]", "no JSON object"),
    ({}, "time is missing"),
    ({"time": "x"}, "time is"),
    ('{"time": NaN, "lost": 1}', "no JSON"),
    ({"time": 1e300, "lost": 1}, "time is"),
    ({"time": -1, "lost": 1}, "time is"),
    ({"time": True, "lost": 1}, "time is"),
    ({"time": 1, "lost": "1"}, "lost is"),
    ({"time": 1, "lost": 1, "node": 7}, "node is"),
    ({"time": 1, "verdict": "allowed"}, "is missing"),
    ({**KEPT, "did_not_fit": 3}, "did_not_fit is"),
    ({**KEPT, "did_not_fit": {"passed": {"packets": 1}}}, "did_not_fit.passed.bytes is missing"),
    (without(KEPT, "limit"), "limit is missing"),
    ({**KEPT, "retired": {"dropped": "2"}}, "retired.dropped is"),
    ({**at(1.0), "source": None}, "source is"),
    ({**at(1.0), "verdict": 7}, "verdict is"),
    ({**at(1.0), "source": {"address": "x"}}, "source.address is"),
    ({**at(1.0), "source": {"labels": ["app"]}}, "source.labels is"),
    ({**at(1.0), "destination": {"labels": {"app": 1}}}, "destination.labels.app is"),
    ({**at(1.0), "destination": {"port": "80"}}, "destination.port is"),
    (without(at(1.0), "direction"), "direction is missing"),
    (without(at(1.0), "protocol"), "protocol is missing"),
    (without(at(1.0), "rule"), "rule is missing"),
    (without(at(1.0, verdict=4, reason=26), "reason"), "reason is missing"),
    ({**at(1.0), "icmp": {"type": 8}}, "icmp.code is missing"),
    ({**at(1.0), "policy_labels": "x"}, "policy_labels is"),
    ({**at(1.0), "policy": "\ud800"}, "no text"),
    (without(flow(), "first_seen"), "first_seen is missing"),
    ({**flow(), "packets": "7"}, "packets is"),
    ({**flow(), "bytes": 10**400}, "bytes is"),
    (without(flow(), "answer_bytes"), "answer_bytes is missing"),
]


@pytest.mark.parametrize("words", ["", "-o json", "-o table --ip 10.0.0.1", "-o dict --until 1d", "--history"])
@pytest.mark.parametrize(("line", "says"), ODD, ids=range(len(ODD)))
def test_what_is_no_recording_is_refused_by_line(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], line: Any, says: str, words: str
) -> None:
    assert replay(tmp_path, [at(1.0), "", line], words) == 2
    told = capsys.readouterr()
    assert f"line 3 of {tmp_path}/f is no event" in told.err and says in told.err
    assert len(told.err) < 1_000 and not told.out


def test_what_is_no_text_is_refused_by_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f"
    file.write_bytes(json.dumps(at(1.0)).encode() + b'\n{"node": "h\xff", "lost": 1, "time": 1}\n')
    assert main(["observe", "--input-file", str(file)]) == 2
    assert f"line 2 of {tmp_path}/f is no event" in capsys.readouterr().err


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(("web-1", "10.77.1.1", "\ud800")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
EVERY_KIND = [at(1.0), at(1.0, verdict=2), at(1.0, verdict=4, reason=26, rule_id=0), at(1.0, protocol=1), flow(), KEPT]
SHOWN = [("-o", output, *more) for output in observed.OUTPUTS for more in (
    (), ("--history",), ("--since", "1d"), ("--until", "1d"), ("--ip", "10.0.0.0/8"), ("--not", "--with", "web"),
    ("--port", "8/icmp"), ("--not", "--label", "app"), ("--policy", "team=shop"), ("--protocol", "6"), ("--last", "1"),
)]  # fmt: skip


@st.composite
def changed_lines(draw: st.DrawFn) -> Dict[str, Any]:
    """A line of which something is left out, or is something else."""
    line = json.loads(json.dumps(draw(st.sampled_from(EVERY_KIND))))
    inside = [line, *(value for value in line.values() if isinstance(value, dict))]
    for _ in range(draw(st.integers(0, 2))):
        at_fault = draw(st.sampled_from(inside))
        name = draw(st.sampled_from((*at_fault, "more")))
        if draw(st.booleans()):
            at_fault[name] = draw(ANY_JSON)
        else:
            at_fault.pop(name, None)
    return line  # type: ignore[no-any-return]


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed_lines(), st.sampled_from(SHOWN))
def test_a_line_is_shown_or_refused_whatever_it_holds(tmp_path: Any, line: Any, words: Tuple[str, ...]) -> None:
    file = tmp_path / "f"
    file.write_text(json.dumps(line))
    assert main(["observe", "--input-file", str(file), *words]) in (0, 2)


def test_what_newer_nodes_say_besides_is_shown(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    line = {**at(1.0), "more": {"list": [1, 2.5, None, True, "é"]}}
    assert replay(tmp_path, [line, {"time": 2.0, "clock": 2.0}], "-o json") == 0
    assert json.loads(capsys.readouterr().out) == line
