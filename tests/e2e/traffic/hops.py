"""Traceroute, one probe at a time: what a process is told of a packet that it sent with few hops."""

from __future__ import annotations

CLOSED_PORT = 33434
TIME_EXCEEDED = {4: [11, 0], 6: [3, 0]}
PORT_UNREACHABLE = {4: [3, 3], 6: [1, 4]}

# Each case [how, address, port, hops] -> [type, code, who says so] of the error that its socket gets, or what else
# became of it. icmp: an echo request.
PROBE = """
import errno, json, select, socket, struct, sys
def made(how, v6):
    family = socket.AF_INET6 if v6 else socket.AF_INET
    if how == "icmp":
        return socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP)
    return socket.socket(family, socket.SOCK_STREAM if how == "tcp" else socket.SOCK_DGRAM)
def probe(how, address, port, hops):
    v6 = ":" in address
    level, ttl, told = (41, 16, 25) if v6 else (0, 2, 11)
    with made(how, v6) as one:
        one.setsockopt(level, told, 1)
        one.setsockopt(level, ttl, hops)
        one.settimeout(float(sys.argv[2]))
        if how == "tcp":
            try:
                one.connect((address, port))
                return "connected"
            except OSError as error:
                return errno.errorcode.get(error.errno, str(error))
        one.connect((address, 0 if how == "icmp" else port))
        echo = struct.pack("!BBHHH", 8, 0, 0xF7F7, 7, 1)
        one.send((struct.pack("!BBHHH", 128, 0, 0, 7, 1) if v6 else echo) if how == "icmp" else b"hi")
        poll = select.poll()
        poll.register(one, select.POLLIN)
        ready = poll.poll(1000 * float(sys.argv[2]))
        if not ready:
            return "timeout"
        if not ready[0][1] & select.POLLERR:
            return "answered"
        for at, kind, data in one.recvmsg(512, 512, socket.MSG_ERRQUEUE)[1]:
            if (at, kind) == (level, told):
                who = data[24:40] if v6 else data[20:24]
                return [data[5], data[6], socket.inet_ntop(one.family, who)]
print(json.dumps([probe(*case) for case in json.loads(sys.argv[1])]))
"""
