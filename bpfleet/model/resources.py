"""The one schema: every resource type, its fields, their documentation, defaults and limits.

Everything else that knows a field is generated from here (see bpfleet/emit) or reads a checked spec. Only what the
datapath enforces is declared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Tuple

from bpfleet.model import address_checks, policy_checks
from bpfleet.model.meaning import PORT_PROTOCOLS
from bpfleet.model.schema import Address, Boolean, Check, Cidr, Field, Integer, ListOf, MapOf, Object, Text

NAME = Text(
    pattern=r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?",
    rule="1 to 63 of a-z, 0-9, - and ., starting and ending with a letter or digit",
)
ENTITY_NAMES = ("unknown", "host", "world", "waiting", "remote-node")
"""What ends without an identity of their own are called where they are shown and asked for."""
END_NAME = Text(
    pattern=rf"(?!({'|'.join(ENTITY_NAMES)})$)(?!([0-9]+\.){{3}}[0-9]+$)(?![0-9]+$){NAME.pattern}",
    rule=f"{NAME.rule}; no number, no address and none of {', '.join(ENTITY_NAMES)}: those mean other ends of a flow",
)
"""Name of a node, identity or endpoint: one by which `observe` and `explain` find it and nothing else."""
LABEL_KEY = Text(
    pattern=r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,126}[A-Za-z0-9])?",
    rule="1 to 128 of letters, digits, -, _, . and /, starting and ending with a letter or digit",
)
LABEL_VALUE = Text(
    pattern=r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?",
    rule="at most 63 of letters, digits, -, _ and ., starting and ending with a letter or digit",
)
LABELS = MapOf(LABEL_VALUE, key=LABEL_KEY)
DEVICE_NAME = Text(pattern=r"[^\s/:]{1,15}", rule="a device name of 1 to 15 characters without space, / and :")
TAP_NAME = Text(
    pattern=r"(?!bpf-|bpfleet_vxlan$)[^\s/:%]{1,15}",
    rule="a device name of 1 to 15 characters without space, /, : and %, not beginning with bpf- and not bpfleet_vxlan",
)
ACCOUNT = Text(
    pattern=r"[A-Za-z0-9_]([-A-Za-z0-9_.]{0,30}[A-Za-z0-9_$])?",
    rule="a user or group: a name of at most 32 letters, digits, _, - and ., or a number",
)
NAMESPACE = Text(pattern=r"[A-Za-z0-9][-A-Za-z0-9_.]{0,62}", rule="the name of a network namespace under /run/netns")

DEFAULT_TUNNEL_PORT = 8472
ENTITIES = ("world", "host", "remote-node", "cluster", "all", "none")
PROTOCOL_NUMBERS: Dict[str, int] = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmpv6": 58}

ROUTING = Object(
    "Routing",
    "How packets travel between nodes.",
    (
        Field("mode", Text(choices=("vxlan",)), "Encapsulation between nodes.", default="vxlan"),
        Field(
            "port",
            Integer(1, 65535),
            "UDP port of the tunnel on every node; none of DHCP's, whose answers would be taken for tunnel packets.",
            default=DEFAULT_TUNNEL_PORT,
        ),
        Field(
            "mtu",
            Integer(1280, 65485),
            "MTU of workloads, in bytes. Default: the smallest MTU of the node's devices less the tunnel's overhead "
            "(50 bytes over IPv4, 70 over IPv6).",
        ),
        Field(
            "direct_delivery",
            Boolean(),
            "Whether packets of an established flow go straight between their workload and the device of the node, "
            "but for one a second; of those received, IPv4. What goes so is seen by no filter and no capture of the "
            "host between the two. On nodes with an IPv4 address, one device, Linux 6.2 or later, and no IPsec.",
            default=True,
        ),
    ),
    checks=(address_checks.tunnel_port,),
)

_HOST_KEY = Text(
    pattern=r"(ssh-|ecdsa-)[a-z0-9-]+ [A-Za-z0-9+/=]+( .*)?",
    rule="a public key line such as 'ssh-ed25519 AAAA…'",
)
_PRIVATE_KEY_FILE = Field(
    "private_key_file",
    Text(),
    "Path of the private key on the controller. Default: keys of the SSH agent, then ~/.ssh's own.",
)
_KNOWN_HOSTS_FILE = Field("known_hosts_file", Text(), "known_hosts file to check against. Default: ~/.ssh/known_hosts.")

JUMP = Object(
    "SshJump",
    "A host on the way to a node, which is dialled from there. All nodes behind it share one connection to it.",
    (
        Field("host", Text(), "Host name or address to dial.", required=True),
        Field("port", Integer(1, 65535), "TCP port of its sshd.", default=22),
        Field("user", Text(), "User to log in as; needs no rights but to forward connections.", default="root"),
        _PRIVATE_KEY_FILE,
        Field(
            "host_key",
            _HOST_KEY,
            "Public key the jump host must show. Default: what known_hosts says; an unknown key is refused.",
        ),
        _KNOWN_HOSTS_FILE,
    ),
)

SSH = Object(
    "Ssh",
    "How the controller reaches a node.",
    (
        Field(
            "host",
            Text(),
            "Host name or address to dial, as the jump host sees it if there is one. Default: the node's address.",
        ),
        Field("port", Integer(1, 65535), "TCP port of sshd.", default=22),
        Field("user", Text(), "User to log in as: root, or one who may use sudo (see sudo).", default="root"),
        Field(
            "sudo",
            Boolean(),
            "Become root by `sudo -n` after logging in as another user; sudo must not ask for a password. Default: no.",
        ),
        _PRIVATE_KEY_FILE,
        Field(
            "host_key",
            _HOST_KEY,
            "Public key the host must show, as in /etc/ssh/ssh_host_ed25519_key.pub. Default: what known_hosts says; "
            "an unknown key is refused.",
        ),
        _KNOWN_HOSTS_FILE,
        Field("jump", JUMP, "Host through which the node is reached. Default: it is dialled directly."),
    ),
)

DEVICE = Object(
    "Device",
    "A network device of a node.",
    (
        Field("name", DEVICE_NAME, "Its name on the node.", required=True),
        Field(
            "xdp",
            Text(choices=("native", "generic", "off")),
            "Where packets of the cluster's blocked_cidrs are dropped: by XDP in the device's driver, by XDP right "
            "behind the driver (any device can), or at tc (off).",
            default="off",
        ),
    ),
)

NODE_HANDLE = Object(
    "NodeHandle",
    "A node as a cluster needs it: its name and how to reach it.",
    (
        Field("name", END_NAME, "Name of the node.", required=True),
        Field("address", Address(), "Underlay address of the node.", required=True),
        Field("ssh", SSH, "How the controller reaches it.", required=True),
    ),
)

CLUSTER_HANDLE = Object(
    "ClusterHandle",
    "A cluster as its resources need it: its name and a few members to ask for the rest.",
    (
        Field("cluster", NAME, "Name of the cluster.", required=True),
        Field("seeds", MapOf(NODE_HANDLE, key=END_NAME), "A few members, by name.", required=True),
    ),
)

MODES = ("enforce", "audit")

EXPRESSION = Object(
    "Expression",
    "What is asked of one label.",
    (
        Field("key", LABEL_KEY, "Key of the label.", required=True),
        Field(
            "operator",
            Text(choices=policy_checks.OPERATORS),
            "In: the label has one of the values. NotIn: it has none of them, or there is no such label. Exists, "
            "DoesNotExist: there is such a label with any value, or none.",
            required=True,
        ),
        Field("values", ListOf(LABEL_VALUE, set_like=True), "Values of In and NotIn."),
    ),
    checks=(policy_checks.expression,),
)

PORT = Object(
    "Port",
    "A protocol, or some of its ports or message types.",
    (
        Field(
            "protocol",
            Text(choices=(*PROTOCOL_NUMBERS, "any")),
            "Protocol. `any` with a port means TCP, UDP and SCTP; without, every protocol.",
            default="any",
        ),
        Field("port", Integer(1, 65535), "Destination port. Default: every port."),
        Field("end_port", Integer(1, 65535), "Last port of a range that begins with `port`. Default: that port alone."),
        Field("type", Integer(0, 255), "Type of an ICMP or ICMPv6 message. Default: every type."),
        Field("code", Integer(0, 255), "Code within the type. Default: every code."),
    ),
    only_with=(
        ("port", "protocol", (*PORT_PROTOCOLS, "any")),
        ("type", "protocol", ("icmp", "icmpv6")),
    ),
    beside=(("end_port", "port"), ("code", "type")),
    checks=(policy_checks.port_range,),
)

PEER = Object(
    "Peer",
    "Who is at the other end.",
    (
        Field("labels", LABELS, "Endpoints whose identity has all these labels; {} means every endpoint."),
        Field(
            "expressions", ListOf(EXPRESSION, distinct=True), "What else is asked of the labels: all of it must hold."
        ),
        Field(
            "entity",
            Text(choices=ENTITIES),
            "host: the endpoint's own node (what a node says to itself is never judged). remote-node: any other node. "
            "cluster: every endpoint and node. world: addresses that are neither endpoint nor node. all: everything. "
            "none: nothing.",
        ),
        Field("cidr", Cidr(), "Addresses of this network that are neither endpoint nor node."),
        Field(
            "except",
            ListOf(Cidr(), set_like=True),
            "Parts of the CIDR that this peer does not mean. They narrow this peer only: another may mean them.",
        ),
        Field(
            "cidr_group",
            NAME,
            "Name of a CIDR group: addresses of its networks that are neither endpoint nor node. Until the group is "
            "there, an allow means nobody by it, and a deny every such address.",
        ),
    ),
    exactly_one=("labels", "entity", "cidr", "cidr_group"),
    beside=(("expressions", "labels"), ("except", "cidr")),
    checks=(policy_checks.selector("labels"), policy_checks.peer_networks),
)

RULE = Object(
    "Rule",
    "What is allowed or denied in one direction.",
    (
        Field("action", Text(choices=("allow", "deny")), "A matching deny beats every allow.", default="allow"),
        Field("peers", ListOf(PEER, distinct=True), "The other ends. Not given: any peer. An empty list: nobody."),
        Field(
            "ports",
            ListOf(PORT, distinct=True),
            "Destination ports and message types. Not given: every protocol and port. An empty list: nothing.",
        ),
    ),
    checks=(policy_checks.families,),
)

DEFAULT_DENY = Object(
    "DefaultDeny",
    "Whether a policy closes a direction to all that no policy allows there.",
    (
        Field("ingress", Boolean(), "For what arrives. Default: if the policy has `ingress`."),
        Field("egress", Boolean(), "For what is sent. Default: if the policy has `egress`."),
    ),
)

FAILSAFE_PORT = Object(
    "FailsafePort",
    "A port of the nodes themselves that no policy can close.",
    (
        Field("protocol", Text(choices=("tcp", "udp")), "Protocol.", default="tcp"),
        Field("port", Integer(1, 65535), "Port.", required=True),
        Field(
            "direction",
            Text(choices=("ingress", "egress")),
            "ingress: the node's own port, which everybody reaches. egress: a port elsewhere, which the node reaches.",
            default="ingress",
        ),
    ),
)
DEFAULT_FAILSAFE_PORTS = ({"protocol": "tcp", "port": 22, "direction": "ingress"},)

DEFAULT_LIMITS: Dict[str, int] = {
    "addresses": 131072,
    "endpoints": 8192,
    "connections": 131072,
    "policy_entries": 262144,
    "cidrs": 262144,
    "frontends": 65536,
    "translations": 65536,
    "blocked_cidrs": 65536,
    "flows": 10240,
}
"""What a cluster that declares nothing has room for, on each node."""


def _limit(name: str, least: int, most: int, doc: str) -> Field:
    return Field(name, Integer(least, most), f"{doc} Default: {DEFAULT_LIMITS[name]}.")


LIMITS = Object(
    "Limits",
    "What each node has room for, in entries of its kernel maps. A change that needs more is refused before "
    "anything is changed, and so is a limit that is lowered below what is there. A changed limit holds at once, "
    "without a packet lost: maps are made anew in the new size with all they hold. But what the traffic itself "
    "fills keeps the size it was made with (translations, flows): there a changed limit holds after "
    "the node's next restart, and until then the node warns of the difference.",
    (
        _limit("addresses", 256, 1 << 22, "Addresses of all endpoints and nodes of the cluster (about 90 bytes each)."),
        _limit("endpoints", 16, 65535, "Endpoints on one node, and so the identities that have policies there."),
        _limit(
            "connections",
            1024,
            1 << 24,
            "Connections that a node remembers, once for each of their ends that is on it (128 bytes each, and 96 "
            "for copies by CPU, but at most 6 MB a CPU; taken at once). When they are used up, those that were idle "
            "for longest are forgotten, and judged again if they go on.",
        ),
        _limit(
            "policy_entries",
            256,
            1 << 20,
            "Peers times ports in the policies of one identity (about 64 bytes each).",
        ),
        _limit("cidrs", 16, 1 << 20, "CIDRs and exceptions in one direction of one identity's policies."),
        _limit("frontends", 16, 1 << 20, "Frontends of all services."),
        _limit(
            "translations",
            1024,
            1 << 24,
            "Flows to services whose backend a node remembers (about 112 bytes each, taken at once), the longest idle "
            "forgotten first.",
        ),
        _limit("blocked_cidrs", 16, 1 << 20, "Networks in `blocked_cidrs`."),
        _limit(
            "flows",
            16,
            1 << 20,
            "Flows in a node's history, a fifth of them for what was dropped (about 130 bytes each, and 32 for each "
            "CPU, taken at once). What does not fit is counted together.",
        ),
    ),
)

FRONTEND = Object(
    "Frontend",
    "What clients of a service connect to.",
    (
        Field(
            "address",
            Address(),
            "Address of the service; of no node and no endpoint.",
            required=True,
        ),
        Field("port", Integer(1, 65535), "Port of the service.", required=True),
        Field("protocol", Text(choices=("tcp", "udp")), "Protocol.", default="tcp"),
    ),
)

BACKEND = Object(
    "Backend",
    "Who answers for a service. A frontend's connections go to backends of its address family.",
    (
        Field("labels", LABELS, "Every endpoint whose identity has all these labels; {} means every endpoint."),
        Field("address", Address(), "One address, of an endpoint or of anything else that the node can reach."),
        Field("port", Integer(1, 65535), "Port there. Default: the frontend's."),
    ),
    exactly_one=("labels", "address"),
)

ATTACH = Object(
    "Attach",
    "How the workload is attached.",
    (
        Field(
            "netns",
            NAMESPACE,
            "Network namespace of the workload (a name under /run/netns on the node); a veth pair is made for it, "
            "eth0 inside.",
        ),
        Field(
            "tap",
            TAP_NAME,
            "Name of a tap that is made on the node, persistent, for a virtual machine to open: judged before it "
            "carries a packet, also after a reboot.",
        ),
        Field(
            "owner",
            ACCOUNT,
            "User who may open the tap, by name or number on the node. Default: root, or the members of `group`.",
        ),
        Field("group", ACCOUNT, "Group whose members may open the tap, by name or number on the node."),
        Field("multi_queue", Boolean(), "Let the tap be opened once for each of several queues. Default: no."),
        Field(
            "interface",
            DEVICE_NAME,
            "Existing device of the node that leads to the workload. It is attached when it appears: a moment after it "
            "can carry packets, if whoever makes it sets it up at once.",
        ),
    ),
    exactly_one=("netns", "tap", "interface"),
    beside=(("owner", "tap"), ("group", "tap"), ("multi_queue", "tap")),
)

_CLUSTER = Field(
    "cluster",
    CLUSTER_HANDLE,
    "Handle of the cluster it belongs to.",
    required=True,
    metadata=True,
    replaces=True,
)


@dataclass(frozen=True)
class Resource:
    """One resource type. `kind` is its name in documents and Ansible, `token` in Pulumi."""

    kind: str
    type_name: str
    doc: str
    fields: Tuple[Field, ...]
    exactly_one: Tuple[str, ...] = ()
    """Names of fields of which one and only one must be given."""
    checks: Tuple[Check, ...] = ()
    name: Text = NAME
    """What a document of it may be called."""

    @property
    def token(self) -> str:
        """Pulumi's type token."""
        return f"bpfleet:index:{self.type_name}"

    @property
    def spec_fields(self) -> Tuple[Field, ...]:
        """The fields of the document: what is declared, without metadata; computed ones that are part of it too."""
        return tuple(field for field in self.fields if not field.metadata)

    @property
    def input_fields(self) -> Tuple[Field, ...]:
        """The fields a user writes."""
        return tuple(field for field in self.fields if not field.computed)


CLUSTER = Resource(
    "cluster",
    "Cluster",
    "A set of nodes that share identities, addresses and policies.",
    (
        Field(
            "id",
            Integer(1, 255),
            "Number of the cluster: bits 16 to 23 of its identities' numbers.",
            required=True,
            replaces=True,
        ),
        Field("routing", ROUTING, "How packets travel between nodes.", default={}),
        Field(
            "members",
            ListOf(END_NAME, set_like=True, least=1),
            "The nodes that belong to it.",
            required=True,
            handles=NODE_HANDLE,
        ),
        Field(
            "failsafe_ports",
            ListOf(FAILSAFE_PORT, set_like=True),
            "Ports of the nodes themselves that no policy can close, so that a policy which selects nodes locks nobody "
            "out. Default: TCP port 22, ingress. A list replaces that; an empty one leaves SSH to the policies.",
        ),
        Field(
            "blocked_cidrs",
            ListOf(Cidr(), set_like=True),
            "Networks from which the nodes' devices take nothing. None may hold a member, a gateway or the controller. "
            "What workloads send to each other travels between members, so it is not blocked by its own addresses.",
        ),
        Field(
            "unselected",
            Text(choices=("open", "deny")),
            "What becomes of an endpoint's traffic in a direction that no policy closes. deny: only what some policy "
            "allows passes, so that a fleet is closed before its first policy and while it is taken down. Default: "
            "open.",
        ),
        Field(
            "mode",
            Text(choices=MODES),
            "audit: what policies would drop passes and is reported, as if every policy were in audit mode, and "
            "`unselected` too. Default: enforce.",
        ),
        Field(
            "allow_local_host",
            Boolean(),
            "Let a node's own processes reach its endpoints unless a rule denies it. Default: they reach them only "
            "where policy lets `host`.",
        ),
        Field("limits", LIMITS, "What each node has room for. Default: those of each field."),
        Field("handle", CLUSTER_HANDLE, "What the cluster's resources refer to.", metadata=True, computed=True),
    ),
)

NODE = Resource(
    "node",
    "Node",
    "A Linux host. Creating it installs the agent and the eBPF objects.",
    (
        Field("address", Address(), "Underlay address by which the other nodes reach it.", required=True),
        Field(
            "devices",
            ListOf(DEVICE, least=1),
            "Underlay devices: where the other nodes' traffic arrives.",
            required=True,
        ),
        Field(
            "workload_cidrs",
            ListOf(Cidr(), set_like=True, least=1),
            "Networks of its endpoints' addresses. No two nodes' may overlap.",
            required=True,
        ),
        Field("labels", LABELS, "Its labels, by which policies select it."),
        Field("ssh", SSH, "How the controller reaches it.", default={}, metadata=True),
        Field(
            "on_delete_unreachable",
            Text(choices=("fail", "forget")),
            "What deleting does when the host does not answer: fail, or forget it with a warning.",
            default="fail",
            metadata=True,
        ),
        Field("handle", NODE_HANDLE, "What a cluster's members refer to.", metadata=True, computed=True),
    ),
    name=END_NAME,
    checks=(address_checks.node_addresses,),
)

IDENTITY = Resource(
    "identity",
    "Identity",
    "A set of labels, known by one number on every node and on the wire.",
    (
        _CLUSTER,
        Field("labels", LABELS, "The labels. No two identities of a cluster may have the same.", required=True),
        Field(
            "number",
            Integer(65536, 0xFFFFFF),
            "The number: cluster id in bits 16 to 23, a hash of the labels below.",
            required=True,
            computed=True,
        ),
    ),
    name=END_NAME,
)

ENDPOINT = Resource(
    "endpoint",
    "Endpoint",
    "A workload: where it runs, who it is, its addresses and how it is attached.",
    (
        _CLUSTER,
        Field("node", END_NAME, "Name of the node it runs on.", required=True),
        Field("identity", END_NAME, "Name of its identity.", required=True),
        Field(
            "addresses",
            ListOf(Address(), set_like=True, least=1),
            "Its addresses, within the node's workload CIDRs; none that a node's own device has.",
            required=True,
        ),
        Field("attach", ATTACH, "How it is attached.", required=True),
    ),
    name=END_NAME,
    checks=(address_checks.endpoint_addresses,),
)

CIDR_GROUP = Resource(
    "cidr_group",
    "CidrGroup",
    "Networks outside the cluster under one name, for the peers of policies.",
    (
        _CLUSTER,
        Field("description", Text(), "What these networks are."),
        Field(
            "cidrs",
            ListOf(Cidr(), set_like=True),
            "The networks. One may lie inside another. An empty list: no address.",
            required=True,
        ),
    ),
)

POLICY = Resource(
    "policy",
    "Policy",
    "What the selected endpoints, or the selected nodes' own processes, may receive and send. A direction without "
    "rules here stays as it is; with rules, or an empty list of them, it is closed to all that no policy allows, "
    "unless `default_deny` says otherwise.",
    (
        _CLUSTER,
        Field("description", Text(), "What it is for; shown beside its rules."),
        Field("labels", LABELS, "Labels of the policy itself; shown beside its rules, and `observe` finds by them."),
        Field(
            "selector",
            LABELS,
            "Endpoints whose identity has all these labels; {} selects every endpoint.",
        ),
        Field(
            "node_selector",
            LABELS,
            "Nodes that have all these labels; {} selects every node. What their own processes receive and send is "
            "judged; their failsafe ports, and what a node needs to have neighbours, addresses and a tunnel, always "
            "pass.",
        ),
        Field(
            "expressions", ListOf(EXPRESSION, distinct=True), "What else is asked of the labels: all of it must hold."
        ),
        Field("ingress", ListOf(RULE), "Rules for what arrives. An empty list allows nothing."),
        Field("egress", ListOf(RULE), "Rules for what is sent. An empty list allows nothing."),
        Field("default_deny", DEFAULT_DENY, "Which directions it closes. Default: those it has rules for."),
        Field(
            "mode",
            Text(choices=MODES),
            "audit: it drops nothing; what it would drop passes and is reported. Default: enforce.",
        ),
    ),
    exactly_one=("selector", "node_selector"),
    checks=(
        policy_checks.selector("selector", "node_selector"),
        policy_checks.says_something,
        policy_checks.nothing_twice,
        policy_checks.rules_apart,
        policy_checks.host_of_nodes,
        policy_checks.networks_of_somebody,
    ),
)

SERVICE = Resource(
    "service",
    "Service",
    "Frontends whose connections are spread over backends, by every node for what runs on it. Policies judge by the "
    "backend, as if it had been addressed directly. A service without backends refuses connections at once.",
    (
        _CLUSTER,
        Field(
            "frontends",
            ListOf(FRONTEND, set_like=True, least=1),
            "What clients connect to. No two services may have the same frontend.",
            required=True,
        ),
        Field(
            "backends",
            ListOf(BACKEND, set_like=True),
            "Who answers. An empty list refuses every connection.",
            required=True,
        ),
    ),
)

RESOURCES: Dict[str, Resource] = {
    resource.kind: resource for resource in (CLUSTER, NODE, IDENTITY, ENDPOINT, CIDR_GROUP, POLICY, SERVICE)
}
"""Resource types by kind, in the order in which they refer to each other."""
