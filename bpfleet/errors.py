"""The one error tree. Every error says what is wrong, where, and what to do about it.

    BpfleetError
    ├── InvalidInput            a document or argument is wrong; nothing was changed
    │   ├── UnknownField        a field the schema does not have
    │   └── Conflict            two documents cannot both hold, such as two of one address
    │       ├── NumberTaken     the identity number belongs to other labels: try the next
    │       └── NotOwner        the document belongs to another owner
    ├── HostUnfit               the host lacks something that is needed (kernel, BTF, bpffs, libbpf, Python)
    ├── HostFailed              a system call, a file operation or a command on the host failed
    │   ├── ObjectRejected      the verifier refused an object; details hold its log's end and path
    │   └── DiskFull            no space left where the agent keeps its state
    ├── TransactionFailed       a transaction is not where the request needs it to be
    ├── ProtocolFailed          the two ends of a channel do not understand each other
    └── Unreachable             the node did not answer
        ├── HostKeyMismatch     the host's key is not the expected one
        └── AuthenticationFailed  the host does not take our key

`where` holds the parts that are known of node, resource ("kind/name"), field (a path such as
"ingress[0].ports[1].port") and file. `details` is plain JSON data for programs. An error crosses the agent's
channel by `to_wire` and `from_wire` without loss.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Type


class BpfleetError(Exception):
    """Root of the tree. Wire form: {"code", "what", "where", "remedy", "details"}."""

    def __init__(
        self,
        what: str,
        *,
        remedy: str = "",
        node: Optional[str] = None,
        resource: Optional[str] = None,
        field: Optional[str] = None,
        file: Optional[str] = None,
        details: Optional[Mapping[str, Any]] = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.where: Dict[str, str] = {
            key: value
            for key, value in (("node", node), ("resource", resource), ("field", field), ("file", file))
            if value is not None
        }
        self.details: Dict[str, Any] = dict(details or {})

    @property
    def field(self) -> Optional[str]:
        """Path of the offending field inside the resource, if one field is to blame."""
        return self.where.get("field")

    @property
    def resource(self) -> Optional[str]:
        """Key of the offending document, "kind/name", if one document is to blame."""
        return self.where.get("resource")

    def at(self, **where: str) -> BpfleetError:
        """Add what only an outer layer knows (such as the node's name) without overwriting what is known."""
        for key, value in where.items():
            self.where.setdefault(key, value)
        return self

    def __str__(self) -> str:
        place = ", ".join(f"{key} {value}" for key, value in self.where.items())
        text = f"{place}: {self.what}" if place else self.what
        return f"{text}. {self.remedy}" if self.remedy else text

    def to_wire(self) -> Dict[str, Any]:
        """Plain JSON data that `from_wire` turns back into an error of the same class."""
        return {
            "code": type(self).__name__,
            "what": self.what,
            "where": dict(self.where),
            "remedy": self.remedy,
            "details": self.details,
        }

    @staticmethod
    def from_wire(data: Mapping[str, Any]) -> BpfleetError:
        """The error that `to_wire` described; a code of a newer peer becomes the root class."""
        cls = _by_name(BpfleetError).get(str(data.get("code")), BpfleetError)
        error = cls(
            str(data.get("what", "unknown error")),
            remedy=str(data.get("remedy", "")),
            details=data.get("details") or {},
        )
        error.where.update({str(key): str(value) for key, value in (data.get("where") or {}).items()})
        return error


def _by_name(cls: Type[BpfleetError]) -> Dict[str, Type[BpfleetError]]:
    names = {cls.__name__: cls}
    for child in cls.__subclasses__():
        names.update(_by_name(child))
    return names


class InvalidInput(BpfleetError):
    """A document or argument is wrong; nothing was changed."""


class UnknownField(InvalidInput):
    """A field the schema does not have."""


class Conflict(InvalidInput):
    """Two documents cannot both hold."""


class NumberTaken(Conflict):
    """The identity number belongs to other labels."""


class NotOwner(Conflict):
    """The document belongs to another owner."""


class HostUnfit(BpfleetError):
    """The host lacks something that is needed."""


class HostFailed(BpfleetError):
    """A system call, a file operation or a command on the host failed."""


class ObjectRejected(HostFailed):
    """The kernel's verifier refused an object."""


class DiskFull(HostFailed):
    """No space left where the agent keeps its state."""


class TransactionFailed(BpfleetError):
    """A transaction is not where the request needs it to be."""


class ProtocolFailed(BpfleetError):
    """The two ends of a channel do not understand each other."""


class Unreachable(BpfleetError):
    """The node did not answer."""


class HostKeyMismatch(Unreachable):
    """The host's key is not the expected one."""


class AuthenticationFailed(Unreachable):
    """The host does not take our key."""
