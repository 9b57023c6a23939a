"""Many probes at once, one socket each, driven by readiness: cheap enough for hundreds on a busy machine.

Like program.py, which uses it, it runs under a host's own python3 and imports nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import struct
import time
from typing import Any, Dict, List, Optional

ECHO = {False: (8, 0), True: (128, 129)}  # IPv6? -> request, reply (RFC 792, RFC 4443)
RECEIVE_BUFFER = 8 << 20
SO_RCVBUFFORCE = 33
TCP_INFO, TOTAL_RETRANS_OFFSET = 11, 100  # linux/tcp.h: tcpi_total_retrans
IPV6_RECVPKTINFO, IPV6_PKTINFO = 49, 50  # linux/in6.h
POLL_SECONDS = 0.02
# A SYN is sent again whole seconds after the first (net.ipv4.tcp_syn_linear_timeouts), or a little later.
RESENDING = (0.98, 0.15)


def plain(address: str) -> str:
    """An address as people write it: IPv4 without the mapping of a dual-stack socket."""
    found = ipaddress.ip_address(address.split("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def reset(connection: socket.socket) -> None:
    """Close a socket such that its end of a TCP connection is gone at once: a reset, and nothing ever again."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Probing:
    """One round of probes; see Station.probe. `seen` fills up in the order of the flows."""

    def __init__(self, flows: List[Dict[str, Any]]) -> None:
        self.flows = flows
        self.seen: List[Optional[str]] = [None] * len(flows)
        self._sockets: Dict[int, socket.socket] = {}
        self._begun: Dict[int, float] = {}
        self._echoing: Dict[bool, socket.socket] = {}
        self._identifier = os.getpid() & 0xFFFF
        self._missing = len(flows)
        self._progress = time.monotonic()
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        """Send everything."""
        for index, flow in enumerate(self.flows):
            try:
                getattr(self, "_begin_" + flow["protocol"])(index, flow)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # how raw IPv6 sockets learn of a drop on the way out of this host
                    self._answer(index, f"refused: {error}")
        self._progress = time.monotonic()

    async def end(self, quiet: float) -> None:
        """Until everything is answered, or nothing was for `quiet` seconds."""
        while self._missing and time.monotonic() - self._progress < quiet:
            await asyncio.sleep(POLL_SECONDS)

    async def again(self) -> List[int]:
        """How many packets each TCP probe sent again (SYNs, where nobody answers). It is closed: it sends no more.
        Reading and closing are two steps, so neither is done at a moment when one may be sent between them."""
        found = [0] * len(self.flows)
        for index, begun in self._begun.items():
            if self.seen[index] is None:
                while (time.monotonic() - begun) % 1 > RESENDING[0] or (time.monotonic() - begun) % 1 < RESENDING[1]:
                    await asyncio.sleep(POLL_SECONDS)
            probe = self._sockets[index]
            info = probe.getsockopt(socket.IPPROTO_TCP, TCP_INFO, TOTAL_RETRANS_OFFSET + 4)
            self._loop.remove_reader(probe)
            reset(probe)
            (found[index],) = struct.unpack_from("I", info, TOTAL_RETRANS_OFFSET)
        return found

    def close(self) -> None:
        for probe in (*self._sockets.values(), *self._echoing.values()):
            if probe.fileno() >= 0:
                self._loop.remove_reader(probe)
                probe.close()

    def _answer(self, index: int, text: str) -> None:
        if self.seen[index] is None:
            self.seen[index] = text
            self._missing -= 1
            self._progress = time.monotonic()

    # TCP and UDP: the server says whom it saw

    def _begin_tcp(self, index: int, flow: Dict[str, Any]) -> None:
        probe = self._sockets[index] = socket.socket(family(flow["address"]), socket.SOCK_STREAM)
        probe.setblocking(False)
        self._begun[index] = time.monotonic()
        code = probe.connect_ex((flow["address"], flow["port"]))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        self._loop.add_reader(probe, self._hear, index, probe)

    def _begin_udp(self, index: int, flow: Dict[str, Any]) -> None:
        probe = self._sockets[index] = socket.socket(family(flow["address"]), socket.SOCK_DGRAM)
        probe.setblocking(False)
        probe.connect((flow["address"], flow["port"]))
        probe.send(b"?")
        self._loop.add_reader(probe, self._hear, index, probe)

    def _hear(self, index: int, probe: socket.socket) -> None:
        try:
            words = probe.recv(4096).split()
            self._answer(index, words[0].decode() if words else "refused: closed")
        except OSError as error:
            self._answer(index, f"refused: {error}")
        self._loop.remove_reader(probe)

    # ICMP: by hand, one raw socket a family

    def _begin_icmp(self, index: int, flow: Dict[str, Any]) -> None:
        is_v6 = ":" in flow["address"]
        raw = self._echoing.get(is_v6) or self._raw(is_v6)
        body = b"bpfleet!" * (flow.get("size", 8) // 8)
        message = struct.pack("!BBHHH", ECHO[is_v6][0], 0, 0, self._identifier, index) + body
        if not is_v6:  # of ICMPv6 the kernel fills in the checksum
            message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
        raw.sendto(message, (flow["address"], 0))

    def _raw(self, is_v6: bool) -> socket.socket:
        kind = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if is_v6 else (socket.AF_INET, socket.IPPROTO_ICMP)
        raw = self._echoing[is_v6] = socket.socket(kind[0], socket.SOCK_RAW, kind[1])
        raw.setblocking(False)
        raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        if is_v6:
            raw.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        self._loop.add_reader(raw, self._hear_echoes, is_v6, raw)
        return raw

    def _hear_echoes(self, is_v6: bool, raw: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, extra, _, peer = raw.recvmsg(65536, 256)
                if is_v6:
                    own = next(value[:16] for _, kind, value in extra if kind == IPV6_PKTINFO)
                else:
                    own, data = data[16:20], data[(data[0] & 15) * 4 :]
                kind, _, _, identifier, index = struct.unpack_from("!BBHHH", data)
                if (kind, identifier) != (ECHO[is_v6][1], self._identifier) or index >= len(self.flows):
                    continue
                if self.flows[index]["address"] == plain(peer[0]):
                    self._answer(index, str(ipaddress.ip_address(own)))
