"""What the agent and its callers say to each other: one JSON object a line, on the agent's stdin and stdout.

    -> {"id": 1, "method": "hello", "params": {}}
    <- {"id": 1, "result": {...}}                       or {"id": 1, "error": <BpfleetError.to_wire>}
    <- {"id": 2, "event": {...}}                        any number of these before the result of a streaming method

Requests may be pipelined; the agent answers them in order, one at a time, and an answer carries its request's id. The
one exception: a request that arrives while a streaming method runs ends the stream (its result is sent first). An
error with id null concerns the channel itself and is the last line. When stdin ends, the agent ends.

All payloads are plain JSON. The TypedDicts below are their shapes, for both ends; fields of classes marked
`total=False` may be missing.
"""

from __future__ import annotations

import json
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, Optional, TypedDict

from bpfleet.errors import BpfleetError, ProtocolFailed
from bpfleet.model.json_text import compact_json

PROTOCOL = 1
"""Raised when an old peer could misunderstand a message; both ends refuse a different number (`hello.protocol`)."""

MAX_LINE_BYTES = 256 * 1024 * 1024
"""Longest line either end accepts; more than the largest store."""

STATE_ROOT = "/var/lib/bpfleet"
"""Where a host keeps documents, journal, log and installed agents."""

EXIT_NOT_INSTALLED = 90
"""Exit status of `install.launch_command` when the host has no agent of that digest: deliver it, then launch again."""

EXIT_NO_PYTHON = 91
"""Exit status of the launch and install commands when the host has no `python3`: raise HostUnfit."""

EXIT_UNFIT = 92
"""Exit status when the interpreter is too old; the reason is on stdout, as a line {"id": null, "error": HostUnfit}."""


class Item(TypedDict):
    """One stored document with what is not part of its content.

    document: {"kind", "name", "spec"}.   owner: "pulumi:<project>/<stack>", "ansible:<cluster>" or the like.
    metadata: controller-side data, such as a node's {"ssh": {...}}; never hashed.
    """

    document: Dict[str, Any]
    owner: str
    metadata: Dict[str, Any]


class Pending(TypedDict):
    """A transaction that is applied and awaits its confirmation (or is just being applied)."""

    transaction: str
    state: str  # "applying" | "applied" | "putting back"
    owner: str
    generation: int
    seconds_left: float  # until the deadline, after which the last confirmed generation is put back


class Hello(TypedDict):
    """Answer to hello. Everything here is read without touching the kernel side."""

    protocol: int
    version: str
    artefact: Optional[str]  # digest under which this agent is installed; None when it runs from a checkout
    boot_id: str
    python: str
    kernel: str
    node: Optional[str]  # name of the node this host is, once it holds documents
    cluster: Optional[str]
    generation: int  # the last confirmed; 0: nothing was ever confirmed
    documents_digest: str  # of the last confirmed generation
    state_digest: Optional[str]
    pending: Optional[Pending]
    writes: int  # every mutating call and file write since the store was made; a no-op adds none
    resolved: Optional[str]  # what a dead transaction found at this start came to, in words


class DocumentsParams(TypedDict, total=False):
    """kinds, names: only these (default: all)."""

    kinds: List[str]
    names: List[str]


class DocumentsResult(TypedDict):
    """The last confirmed documents by key order; `digest` is that of all documents, whatever was asked for."""

    items: List[Item]
    digest: str
    generation: int


class StageParams(TypedDict, total=False):
    """`node` is required: which node this host is. `owner` is required where there are deletes.

    deletes: keys "kind/name"; one that does not exist is no error. replace_all: the store becomes exactly `puts`,
    whoever owned what was there (how a new or lagging member takes over a seed's store).
    wait_seconds: how long to wait for another transaction to end (default 10).
    """

    node: str
    owner: str
    puts: List[Item]
    deletes: List[str]
    replace_all: bool
    wait_seconds: float


class Refusal(TypedDict):
    """One refused document."""

    document: str  # its key
    error: Dict[str, Any]  # BpfleetError.to_wire


class StageResult(TypedDict, total=False):
    """Either {"refused": [...]} alone (nothing was staged), or the rest.

    unchanged: nothing to store and nothing to do in the kernel: no apply, no confirm, and nothing was written
    (`transaction` is then None).
    """

    refused: List[Refusal]
    transaction: Optional[str]
    unchanged: bool
    steps: Dict[str, int]  # count by kind of step
    describe: List[str]  # the first 50 steps in words, and how many more there are
    warnings: List[str]
    capacity: List[Dict[str, Any]]  # {"map", "used", "wanted", "peak", "limit", "key"} in entries: capacity.Usage
    waiting: List[Dict[str, str]]  # {"document", "reason"}
    documents_digest: str
    state_digest: str


class ApplyParams(TypedDict, total=False):
    """transaction: as stage answered; without it, the one this process staged (for callers that must send both requests
    before they read an answer). deadline_seconds: time to confirm (default 60)."""

    transaction: str
    deadline_seconds: float


class ApplyResult(TypedDict):
    """The change is made and awaits `confirm` over a new connection. writes: what it took."""

    transaction: str
    generation: int
    writes: int
    state_digest: str
    documents_digest: str


class ConfirmParams(TypedDict):
    """Sent over a connection that was made after apply answered (TransactionFailed otherwise)."""

    transaction: str


class ConfirmResult(TypedDict):
    """The generation that is now the confirmed one. Confirming a confirmed transaction again is no error."""

    generation: int
    documents_digest: str
    state_digest: str


class RollbackParams(TypedDict, total=False):
    """transaction: only if this one is staged or pending (default: whichever is)."""

    transaction: str


class RollbackResult(TypedDict):
    """rolled_back: the transaction put back, or None if there was nothing to put back."""

    rolled_back: Optional[str]
    generation: int
    documents_digest: str


class StatusResult(TypedDict, total=False):
    """Everything `bpfleet status` shows of one node."""

    node: Optional[str]
    cluster: Optional[str]
    generation: int
    documents_digest: str
    state_digest: Optional[str]
    documents: Dict[str, int]  # count by kind
    programs: List[Dict[str, str]]  # {"device", "hook", "object"}
    drift: List[str]  # steps that would bring the kernel back to what is confirmed, in words
    maps: List[Dict[str, Any]]  # as bpfleet.observe.usage.gauge
    counters: List[Dict[str, Any]]  # {"reason", "drop": bool, "packets", "bytes"}
    waiting: List[Dict[str, str]]
    services: List[Dict[str, Any]]  # {"name", "frontends": [{"frontend": "10.96.0.10:80/tcp", "backends": count}]}
    warnings: List[str]
    pending: Optional[Pending]
    writes: int
    fitness: List[Dict[str, Any]]  # HostUnfit errors, as to_wire
    agent: Dict[str, Any]  # version, artefact, python, kernel, log


class JournalParams(TypedDict, total=False):
    """limit: newest entries (default 50)."""

    limit: int


class FilterParams(TypedDict):
    """One filter: key of bpfleet.observe.filters.KEYS, what it is compared with, "not": it must not match."""

    key: str
    value: str


class EventsParams(TypedDict, total=False):
    """follow: stream until the next request or the end of stdin. last: how many of the kept events first (default 20;
    -1: all). filters: see FilterParams; of one key they are alternatives, those of different keys must all match.

    since, until: seconds since the epoch, by the node's clock. notices: also a line {"clock", "kept_from"?} with the
    node's time and, if older events were overwritten, the time since which all are kept: each CPU overwrites its own.
    """

    follow: bool
    last: int
    filters: List[FilterParams]
    since: float
    until: float
    notices: bool


class FlowEnd(TypedDict, total=False):
    """One end of a flow: its address and, as far as known, port and names."""

    address: str  # "" where the packet has none that can be read
    port: int
    identity: int
    identity_name: str
    labels: Dict[str, str]
    endpoint: str  # of this node or another
    node: str


class VerdictEvent(TypedDict, total=False):
    """One line of a stream of events. A line {"lost": n} says that n events were overwritten before being read.

    policy, policy_labels: of a default deny those of all policies that close, "a, b", also the values of one key.
    """

    time: float  # seconds since the epoch
    node: str
    verdict: str  # "allowed" | "audited" (passed, but policy would have dropped it) | "denied" | "dropped"
    reason: str
    direction: str  # "ingress" | "egress" | ""
    protocol: str
    source: FlowEnd
    destination: FlowEnd
    rule_id: int
    policy: str
    rule: str  # "ingress[0]", "default deny" or, where no policy closes the direction, words that say so
    description: str
    policy_labels: Dict[str, str]
    gone: str  # "yes": the rule is no longer declared
    changed: str  # "yes": it is, but said something else of itself then, or its policy selected others
    icmp: Dict[str, int]  # {"type", "code"}
    hook: str
    length: int
    lost: int


class FlowsParams(TypedDict, total=False):
    """As EventsParams; last: how many of those seen last (default all). since and until are about any packet of a flow:
    the last not before `since`, the first not after `until`."""

    last: int
    filters: List[FilterParams]
    since: float
    until: float


class Flow(TypedDict, total=False):
    """One line of a stream of flows: the history by pair of identities. Answers are the packets against the connection.

    The last line is none but says what is not in the history: {"clock", "kept": flows, "limit": flows, "did_not_fit":
    {"passed" | "dropped": counts}, "retired": {"passed" | "dropped": flows that were idle and gave their place}}.
    """

    first_seen: float  # seconds since the epoch
    last_seen: float  # to about a second
    node: str
    verdict: str
    reason: str  # of what was denied or dropped
    direction: str
    protocol: str
    source: FlowEnd  # without address and port
    destination: FlowEnd  # without address
    icmp: Dict[str, int]
    rule_id: int
    policy: str
    rule: str
    description: str
    policy_labels: Dict[str, str]
    gone: str
    changed: str
    packets: int
    bytes: int
    answer_packets: int
    answer_bytes: int


class FlowsResult(TypedDict):
    """Ends a stream of flows: how many were sent."""

    flows: int


class EventsResult(TypedDict):
    """Ends a stream: how many events were sent and how many were lost."""

    events: int
    lost: int


class AddressesResult(TypedDict):
    """held: addresses that the node has, declared or not. shared: those of its networks' broadcasts, which it takes in
    as well."""

    held: List[str]
    shared: List[str]


class ExplainParams(TypedDict, total=False):
    """source, destination: an endpoint's or node's name, an address, or "world", "host", "remote-node".

    port: of the destination; TCP, UDP and SCTP need it. type, code: of an ICMP or ICMPv6 message; by default that of an
    echo request. known: what other nodes, by name, answered to `addresses`.
    """

    source: str
    destination: str
    protocol: str
    port: int
    type: int
    code: int
    known: Dict[str, AddressesResult]


class Judged(TypedDict, total=False):
    """What one side's policy says: `direction` on `node`, about the endpoint of identity `subject`.

    Or what passes there unjudged, or is dropped besides policy: `rule` says why, `reason` as counters and events do.
    assumes: what must be so on the node for that, and no document says.
    """

    direction: str
    node: str
    subject: str
    verdict: str  # "allowed" | "audited" | "denied" | "dropped"
    rule_id: int
    policy: str
    rule: str
    action: str
    description: str
    policy_labels: Dict[str, str]
    reason: str
    assumes: str


class ExplainedBackend(TypedDict):
    """What decides about one backend of a frontend."""

    destination: Dict[str, str]
    port: int
    verdict: str
    judged: List[Judged]


class ExplainResult(TypedDict, total=False):
    """source and destination: {"name", "identity_name", "endpoint"?, "node"?}.

    To a service's frontend, `backends` has what decides, and `judged` is empty; the verdict may then be `mixed` (it is
    not the same for all backends) or `refused` (there is none). undeclared: ends that are addresses which no document
    has. A node knows of those only its own, and what `known` says of others'.
    """

    source: Dict[str, str]
    destination: Dict[str, str]
    protocol: str
    port: int
    type: int
    code: int
    verdict: str
    judged: List[Judged]
    backends: List[ExplainedBackend]
    undeclared: List[str]


class WipeParams(TypedDict, total=False):
    """node: wipe only if this host is (still) that node."""

    node: str


class WipeResult(TypedDict):
    """writes: what it took."""

    writes: int
    wiped: bool


STREAMING: FrozenSet[str] = frozenset({"events", "flows"})
METHODS: FrozenSet[str] = frozenset(
    {
        "hello",
        "documents",
        "stage",
        "apply",
        "confirm",
        "rollback",
        "status",
        "state",
        "events",
        "flows",
        "addresses",
        "explain",
        "journal",
        "wipe",
    }
)


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as a line, newline included. Raises ProtocolFailed for what is not JSON data."""
    try:
        text = compact_json(message)
    except (TypeError, ValueError) as error:
        raise ProtocolFailed(f"a message cannot be sent as JSON: {error}") from error
    return text.encode() + b"\n"


def event_lines(number: Any, events: Iterable[str]) -> bytes:
    """Events of a stream, each as JSON already, as the lines in which they are sent."""
    start = f'{{"id":{compact_json(number)},"event":'
    return "".join([f"{start}{event}}}\n" for event in events]).encode()


def decode(line: bytes) -> Dict[str, Any]:
    """The message in one line. Raises ProtocolFailed, showing the line's start, for anything but a JSON object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:  # the latter of brackets without end
        raise _not_a_message(line) from error
    if not isinstance(message, dict):
        raise _not_a_message(line)
    return message


def _not_a_message(line: bytes) -> ProtocolFailed:
    return ProtocolFailed(
        f"expected a JSON object on one line, got {line[:200]!r}",
        remedy="Something else writes to the channel, often a login script (.bashrc) that prints: make it silent for "
        "sessions without a terminal.",
    )


def request(number: int, method: str, params: Mapping[str, Any]) -> bytes:
    """A request as a line."""
    return encode({"id": number, "method": method, "params": dict(params)})


def result_of(message: Mapping[str, Any]) -> Any:
    """The result in an answer; raises the error that it carries instead."""
    if "error" in message:
        raise BpfleetError.from_wire(message["error"])
    return message["result"]
