"""A lab: real hosts in namespaces of this machine, for tests, demonstrations and trying things out.

lab.py        Lab and Host: what tests and the command line use
plan.py       names, numbers and addresses, computed from a lab's shape (pure)
machine.py    what this machine must have; running programs
state.py      what is recorded about a lab, and its locks
network.py    the switch that joins the hosts, and the link to it
hosts.py      starting, entering and ending hosts
host_init.py  process 1 of a host (stands alone: it runs under the machine's own python3)
files.py      keys, ssh_config, inventory.yml, lab.json
guard.py      takes a lab down when the process that wanted it is gone
"""

from __future__ import annotations

from bpfleet.lab.lab import Host, Lab, World

__all__ = ["Host", "Lab", "World"]
