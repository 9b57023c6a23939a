"""Being root on the host: by logging in as root, or by sudo."""

from __future__ import annotations

from bpfleet.errors import BpfleetError, HostUnfit
from bpfleet.transport.target import ROOT, Target

_SUDO = "sudo:"
_NOT_FOUND = 127


def require_root(target: Target) -> None:
    """HostUnfit if commands on this host could not become root."""
    if target.user != ROOT and not target.sudo:
        raise HostUnfit(
            f"{target.user} is not root, and only root can load eBPF programs",
            node=target.name,
            field=f"{target.at}.user",
            remedy=f"Log in as root, or set {target.at}.sudo to true and let {target.user} use sudo without a password",
        )


def as_root(target: Target, command: str) -> str:
    """The command (a line for the login shell) with root's rights."""
    if target.user == ROOT or not target.sudo:
        return command
    # -n: never ask. No terminal is there to answer, and sudo would wait for one for ever.
    return f"exec sudo -n -- {command.removeprefix('exec ')}"


def sudo_problem(target: Target, status: int | None, complaint: str) -> BpfleetError | None:
    """What it means that the command ended with this exit status and stderr, if sudo is why."""
    if target.user == ROOT or not target.sudo or not status:
        return None
    said = next((line.strip() for line in complaint.splitlines() if line.startswith(_SUDO)), "")
    if status == _NOT_FOUND and "sudo" in complaint:
        what, remedy = f"the host has no sudo ({complaint.strip()})", "Install sudo on it, or log in as root"
    elif "password is required" in said or "terminal is required" in said or "must have a tty" in said:
        what = f"sudo wants a password of {target.user} ({said})"
        remedy = f"Allow it without: echo '{target.user} ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/bpfleet"
    elif said or "not in the sudoers file" in complaint or "not allowed to" in complaint:
        what = f"sudo refuses {target.user} ({said or complaint.strip()})"
        remedy = f"Allow it: echo '{target.user} ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/bpfleet"
    else:
        return None
    return HostUnfit(
        what,
        node=target.name,
        field=f"{target.at}.sudo",
        remedy=remedy,
        details={"exit_status": status, "stderr": complaint},
    )
