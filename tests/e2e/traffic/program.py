"""The station: sends and receives packets where it is started (a workload's or a host's network namespace).

Runs under the host's own python3 with nothing but the standard library and the file beside it. One JSON command a
line on stdin, one JSON answer a line on stdout, in any order: {"id", "do", ...} -> {"id", "answer"} or {"id",
"error"}. Ends when stdin does.

Its servers say to whoever comes which address they saw: a TCP server in its first line, a UDP server before the payload
that it sends back. What begins with "#<stream> <number>" is noted as a number of that stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple

from probing import RECEIVE_BUFFER, SO_RCVBUFFORCE, Probing, family, plain, reset  # type: ignore[import-not-found]

ETH_P_ALL = 3
PACKET_OUTGOING = 4
SNIFF_MOST = 20000
SIOCGIFMTU, SIOCGIFHWADDR = 0x8921, 0x8927  # linux/sockios.h


def abort(transport: Any) -> None:
    """Close a TCP connection by a reset; this end of it is gone at once."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Noted:
    """Numbers heard, by stream."""

    def __init__(self) -> None:
        self.numbers: Dict[str, List[int]] = {}

    def note(self, text: bytes) -> bool:
        """Note a number; False if this is none."""
        if not text.startswith(b"#"):
            return False
        stream, number = text[1:].decode().split()[:2]
        self.numbers.setdefault(stream, []).append(int(number))
        return True


class Conversation(asyncio.Protocol):
    """Server side of one TCP connection: says the peer's address, echoes, and keeps what it heard."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self.rest = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        address, port = transport.get_extra_info("peername")[:2]
        self.heard = {"address": plain(address), "port": port, "data": ""}
        self.station.heard.append(self.heard)
        self.station.conversations.add(self)
        transport.write(plain(address).encode() + b"\n")

    def connection_lost(self, error: Optional[Exception]) -> None:
        self.station.conversations.discard(self)

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.station.noted.note(line)
        if len(self.heard["data"]) < 4096:
            self.heard["data"] += data[:4096].decode(errors="replace")
        self.station.bytes_heard += len(data)
        self.transport.write(data)


class Echo(asyncio.DatagramProtocol):
    """UDP server: sends back the peer's address and the payload."""

    def __init__(self, station: Station) -> None:
        self.station = station

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer: Tuple[Any, ...]) -> None:
        if not self.station.noted.note(data):
            heard = {"address": plain(peer[0]), "port": peer[1], "data": data[:64].decode("latin1")}
            self.station.datagrams.append(heard)
        self.station.bytes_heard += len(data)
        self.transport.sendto(plain(peer[0]).encode() + b" " + data, peer)


class Station:
    def __init__(self) -> None:
        self.noted = Noted()
        self.heard: List[Dict[str, Any]] = []
        self.datagrams: List[Dict[str, Any]] = []
        self.bytes_heard = 0
        self.conversations: Set[Conversation] = set()
        self.streams: Dict[str, Tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self.spent: List[socket.socket] = []
        self.numbering: Dict[str, asyncio.Task[int]] = {}
        self.sniffers: Dict[str, Tuple[socket.socket, List[Tuple[str, str]]]] = {}
        self.tcp: Dict[Tuple[str, int], asyncio.AbstractServer] = {}
        self.udp: Dict[int, asyncio.DatagramTransport] = {}

    # Servers

    async def serve(self, tcp: List[int], udp: List[int], addresses: List[str]) -> None:
        """TCP and UDP servers on these ports of these addresses ("::" is all of both families). A place with several
        addresses in a family names one: UDP answers from wherever the route says."""
        loop = asyncio.get_running_loop()
        for address in addresses:
            for port in tcp:
                await self._listen(address, port)
            for port in udp:
                bound = self._bound(socket.SOCK_DGRAM, address, port)
                bound.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
                self.udp[port], _ = await loop.create_datagram_endpoint(lambda: Echo(self), sock=bound)

    async def _listen(self, address: str, port: int) -> None:
        listener = self._bound(socket.SOCK_STREAM, address, port)
        loop = asyncio.get_running_loop()
        self.tcp[(address, port)] = await loop.create_server(lambda: Conversation(self), sock=listener, backlog=512)

    def _bound(self, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
        bound = socket.socket(family(address), kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        bound.bind((address, port))
        bound.setblocking(False)
        return bound

    async def report(self, clear: bool = False) -> Dict[str, Any]:
        """What the servers heard so far, but for numbers: TCP connections and datagrams, and all in bytes."""
        answer = {"connections": self.heard, "datagrams": self.datagrams, "bytes": self.bytes_heard}
        if clear:
            self.heard, self.datagrams, self.bytes_heard = [], [], 0
        return answer

    async def numbers(self, stream: str) -> Dict[str, int]:
        """How many numbers of a stream were heard, how many different ones, and the highest (-1: none yet)."""
        heard = self.noted.numbers.get(stream, [])
        return {"count": len(heard), "different": len(set(heard)), "highest": max(heard, default=-1)}

    async def silence(self) -> None:
        """End every TCP connection here, so that nothing of it is ever sent again: those that were accepted, dialled
        or numbered, and the half-open ones, whose answers a listener repeats for as long as it listens."""
        for address, port in list(self.tcp):
            self.tcp.pop((address, port)).close()
            await self._listen(address, port)
        for name in list(self.streams):
            await self.hang_up(name)
        for conversation in list(self.conversations):
            abort(conversation.transport)
        while self.spent:
            reset(self.spent.pop())
        while self.conversations:  # transports close in a later turn of the loop
            await asyncio.sleep(0.01)

    # Probes

    async def probe(self, flows: List[Dict[str, Any]], quiet: float) -> List[List[Any]]:
        """For each {"protocol", "address", "port"}: [the address that the other end saw, or None when nothing came
        back; how often TCP asked again]. All at once, until nothing has come back for `quiet` seconds. What is refused
        in words is "refused: ..."."""
        probing = Probing(flows)
        try:
            probing.begin()
            await probing.end(quiet)
            return [[seen, again] for seen, again in zip(probing.seen, await probing.again())]
        finally:
            probing.close()

    # TCP connections that stay

    async def dial(self, name: str, address: str, port: int, timeout: float) -> Optional[int]:
        """Open a connection under a name; its own port, or None if nobody answered."""
        try:
            opening = asyncio.open_connection(address, port)
            reader, writer = await asyncio.wait_for(opening, timeout)
            await asyncio.wait_for(reader.readline(), timeout)
        except (OSError, asyncio.TimeoutError, TimeoutError):
            return None
        self.streams[name] = (reader, writer)
        return int(writer.get_extra_info("sockname")[1])

    async def say(self, name: str, text: str, timeout: float) -> bool:
        """Send a line and wait for its echo."""
        reader, writer = self.streams[name]
        writer.write(text.encode() + b"\n")
        try:
            return (await asyncio.wait_for(reader.readline(), timeout)).decode().strip() == text
        except (OSError, asyncio.TimeoutError, TimeoutError):
            return False

    async def pour(self, name: str, size: int, timeout: float) -> int:
        """Send so many bytes; how many came back in time."""
        reader, writer = self.streams[name]
        back = 0

        async def feed() -> None:
            for _ in range(size // 65536):
                writer.write(b"x" * 65535 + b"\n")
                await writer.drain()

        feeding = asyncio.ensure_future(feed())
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            while back < size // 65536 * 65536:
                back += len(await asyncio.wait_for(reader.read(1 << 18), timeout))
        feeding.cancel()
        return back

    async def hang_up(self, name: str) -> None:
        """Close without a word to the other end, as far as TCP allows: a reset."""
        _, writer = self.streams.pop(name)
        abort(writer.transport)

    # Numbered packets

    async def number(self, stream: str, protocol: str, address: str, port: int, interval: float) -> None:
        """Send "#<stream> <n>" for n = 0, 1, 2, ... every `interval` seconds until `enough`."""
        self.numbering[stream] = asyncio.ensure_future(self._number(stream, protocol, address, port, interval))

    async def _number(self, stream: str, protocol: str, address: str, port: int, interval: float) -> int:
        kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
        loop = asyncio.get_running_loop()
        out = socket.socket(family(address), kind)
        self.spent.append(out)  # stays open, or what is under way would be lost
        out.setblocking(False)
        await loop.sock_connect(out, (address, port))
        loop.add_reader(out, self._discard, out)
        sent = 0
        try:
            while True:
                await loop.sock_sendall(out, f"#{stream} {sent}\n".encode())
                sent += 1
                await asyncio.sleep(interval)
        except asyncio.CancelledError:
            return sent
        finally:
            loop.remove_reader(out)

    @staticmethod
    def _discard(source: socket.socket) -> None:
        with contextlib.suppress(OSError):
            source.recv(65536)

    async def enough(self, stream: str) -> int:
        """Stop a stream; how many were sent."""
        task = self.numbering.pop(stream)
        task.cancel()
        return await task

    # Frames

    async def frames(self, device: str, frames: List[str], gap: float = 0.0) -> int:
        """Send Ethernet frames (hex) out of a device, `gap` seconds apart."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind((device, 0))
            for frame in frames:
                out.send(bytes.fromhex(frame))
                if gap:
                    await asyncio.sleep(gap)
        return len(frames)

    async def datagram(self, address: str, port: int, payloads: List[str], source_port: int = 0) -> int:
        """Send datagrams (hex) through the stack, as any program would; the port they left from. A port that is served
        sends from its server's socket."""
        if source_port in self.udp:
            target = f"::ffff:{address}" if ":" not in address else address
            for payload in payloads:
                self.udp[source_port].sendto(bytes.fromhex(payload), (target, port))
            return source_port
        with socket.socket(family(address), socket.SOCK_DGRAM) as out:
            out.bind(("", source_port))
            for payload in payloads:
                out.sendto(bytes.fromhex(payload), (address, port))
            return int(out.getsockname()[1])

    async def device(self, name: str) -> Dict[str, Any]:
        """{"mac", "mtu"} of a device here. By ioctl (netdevice(7)): the mounted /sys is another namespace's."""
        request = name.encode().ljust(40, b"\0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            mac = fcntl.ioctl(any_socket, SIOCGIFHWADDR, request)[18:24]
            (mtu,) = struct.unpack_from("i", fcntl.ioctl(any_socket, SIOCGIFMTU, request), 16)
        return {"mac": mac.hex(":"), "mtu": mtu}

    async def sniff(self, name: str, device: str) -> None:
        """Keep the start of every frame that passes a device, either way, until `sniffed`."""
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        ear.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        ear.bind((device, ETH_P_ALL))
        ear.setblocking(False)
        kept: List[Tuple[str, str]] = []
        self.sniffers[name] = (ear, kept)
        asyncio.get_running_loop().add_reader(ear, self._hear, ear, kept)

    @staticmethod
    def _hear(ear: socket.socket, kept: List[Tuple[str, str]]) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(kept) < SNIFF_MOST:
                data, origin = ear.recvfrom(65536)
                kept.append(("out" if origin[2] == PACKET_OUTGOING else "in", data[:200].hex()))

    async def sniffed(self, name: str) -> List[Tuple[str, str]]:
        """Stop, and hand over (direction at the device, frame in hex, at most 200 bytes) in order of arrival."""
        ear, kept = self.sniffers.pop(name)
        self._hear(ear, kept)
        asyncio.get_running_loop().remove_reader(ear)
        ear.close()
        return kept

    async def read(self, path: str) -> str:
        """A file of /proc as this network namespace sees it."""
        return Path(path).read_text()


async def main() -> None:
    station = Station()
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    running = set()

    async def carry_out(command: Dict[str, Any]) -> None:
        number = command.pop("id")
        try:
            answer = {"id": number, "answer": await getattr(station, command.pop("do"))(**command)}
        except Exception as error:  # noqa: BLE001 - the test that asked gets to see it
            answer = {"id": number, "error": repr(error)}
        line = json.dumps(answer).encode() + b"\n"
        while line:
            line = line[os.write(1, line) :]

    while True:
        line = await commands.readline()
        if not line:
            return
        task = asyncio.ensure_future(carry_out(json.loads(line)))
        running.add(task)
        task.add_done_callback(running.discard)


if __name__ == "__main__":
    asyncio.run(main())
