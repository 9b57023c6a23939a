"""The channel itself: lines, pipelining, errors, and what goes to the log."""

from __future__ import annotations

import json
from typing import Any, Dict

import pytest

from bpfleet.agent import wire
from bpfleet.errors import BpfleetError, InvalidInput, ProtocolFailed
from tests.agent.conftest import Host, quickstart


def test_pipelined_requests_are_answered_in_order(host: Host) -> None:
    connection = host.connect()
    big = quickstart()
    big["puts"][0]["metadata"] = {"filler": "x" * 3_000_000}  # more than a pipe or one read holds
    numbers = [
        connection.send(method, params)
        for method, params in (("hello", {}), ("stage", big), ("journal", {}), ("no", {}))
    ]
    answers = [connection.receive() for _ in numbers]
    assert [answer["id"] for answer in answers] == numbers
    assert answers[1]["result"]["transaction"]
    assert answers[3]["error"]["code"] == "ProtocolFailed"


def test_a_line_in_pieces_is_one_line(host: Host) -> None:
    connection = host.connect()
    for byte in wire.request(7, "hello", {}):
        connection.write(bytes([byte]))
    assert connection.receive()["id"] == 7


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b'{"id":1,"method":"hello","params":[1]}\n', b"\xff\n"])
def test_what_is_no_request_is_answered_and_the_channel_goes_on(host: Host, line: bytes) -> None:
    connection = host.connect()
    connection.write(b"\n" + line)
    assert connection.receive()["error"]["code"] == "ProtocolFailed"
    assert connection.call("hello")["generation"] == 0


@pytest.mark.parametrize("method", ["events", "flows"])
@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"since": 1000.0, "until": 999.0}, "until"),
        ({"since": "soon"}, "since"),
        ({"until": [1]}, "until"),
        ({"until": True}, "until"),
        ({"since": 10**400}, "since"),
        ({"last": "many"}, "last"),
        ({"last": 1.5}, "last"),
        ({"filters": 7}, "filters"),
        ({"filters": {"key": "verdict"}}, "filters"),
        ({"filters": [7]}, "filters"),
    ],
    ids=str,
)
def test_whoever_asks_what_nothing_can_match_is_told_which_of_it(
    host: Host, method: str, params: Dict[str, Any], field: str
) -> None:
    """By the agent, whoever asks it: the command line is one of them."""
    connection = host.connect()
    with pytest.raises(InvalidInput) as raised:
        connection.call(method, **params)
    assert raised.value.field == field
    assert connection.call(method, since=1000.0, until=1000.0)[method] == 0


def test_an_unexpected_exception_is_a_clean_error_with_its_traceback_in_the_log(host: Host) -> None:
    host.connect().call("hello")
    host.kernel_file.write_bytes(b"no pickle")
    connection = host.connect()
    with pytest.raises(BpfleetError, match="internal error in the agent: ") as raised:
        connection.call("stage", **quickstart())
    log = host.root / "agent.log"
    assert type(raised.value) is BpfleetError
    assert raised.value.where["file"] == str(log)
    assert "Traceback" not in str(raised.value)
    assert "Traceback" in log.read_text()
    assert connection.call("hello")["generation"] == 0
    assert "Traceback" in connection.close()


def test_the_log_is_bounded(host: Host) -> None:
    host.root.mkdir()
    log = host.root / "agent.log"
    log.write_text("x" * (1 << 20) + "\n")
    host.kernel_file.write_bytes(b"no pickle")
    with pytest.raises(BpfleetError):
        host.connect().call("stage", **quickstart())
    assert log.stat().st_size < 100_000
    assert (host.root / "agent.log.1").stat().st_size > 1 << 20


def test_the_agent_ends_with_its_input(host: Host) -> None:
    connection = host.connect()
    connection.call("hello")
    assert connection.close() == ""
    assert connection.process.returncode == 0


def test_a_message_is_one_line_whatever_it_holds() -> None:
    line = wire.encode({"text": "a\nb\u2028\x00ü"})
    assert line.count(b"\n") == 1
    assert wire.decode(line) == {"text": "a\nb\u2028\x00ü"}
    with pytest.raises(ProtocolFailed, match="cannot be sent"):
        wire.encode({"x": float("nan")})


def test_a_login_script_that_prints_is_explained() -> None:
    with pytest.raises(ProtocolFailed, match="Welcome") as raised:
        wire.decode(b"Welcome to h1!\n")
    assert "login script" in raised.value.remedy
    with pytest.raises(ProtocolFailed, match="one line"):
        wire.decode(b"[" * 100_000)


def test_every_method_is_there(host: Host) -> None:
    connection = host.connect()
    connection.send("nothing")
    assert set(connection.receive()["error"]["details"]["methods"]) == wire.METHODS
    assert wire.STREAMING <= wire.METHODS
    assert json.dumps(sorted(wire.METHODS))
