"""Host certificates: keys that an authority vouches for (OpenSSH's PROTOCOL.certkeys; ssh-keygen(1), CERTIFICATES).

That the host holds the certified key is proven by the key exchange; here it is judged whether the certificate is good
for this host: signed by a known authority, for hosts, for this name, now. Stricter than ssh in two points: it must name
its hosts, and names count as they stand (no wildcards).
"""

from __future__ import annotations

import base64
import time
from collections.abc import Collection
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

SUFFIX = "-cert-v01@openssh.com"
_SHA1_SIGNATURE = b"\0\0\0\7ssh-rsa"


@dataclass(frozen=True)
class Certificate:
    """A host certificate as the host sent it: its type ("ssh-ed25519-cert-v01@openssh.com") and its wire form."""

    kind: str
    blob: bytes

    def authority(self) -> bytes:
        """Wire form of the public key that signed it; ValueError if the certificate cannot be read."""
        return base64.b64decode(self._load().signature_key().public_bytes(*_OPENSSH).split()[1])

    def problem(self, name: str, authorities: Collection[bytes], now: float | None = None) -> str:
        """Why it does not show that this is the host called `name`; "" if it does. `authorities`: wire forms of the
        keys that may sign for this host. now: seconds since 1970."""
        now = time.time() if now is None else now
        try:
            certificate = self._load()
            if self.authority() not in authorities:
                return "it is signed by an authority that known_hosts does not name for this host"
            if self._signed_with_sha1(certificate):
                return "it is signed with SHA-1, which proves nothing any more"
            certificate.verify_cert_signature()
        except InvalidSignature:
            return "its signature is wrong"
        except (ValueError, UnsupportedAlgorithm) as broken:
            return f"it cannot be read ({broken})"
        if certificate.type is not serialization.SSHCertificateType.HOST:
            return "it is a user's certificate, not a host's"
        if certificate.critical_options:
            named = b", ".join(certificate.critical_options).decode(errors="replace")
            return f"it has critical options that nobody knows ({named})"
        if not certificate.valid_after <= now < certificate.valid_before:
            begin, end = (_day(moment) for moment in (certificate.valid_after, certificate.valid_before))
            return f"it is valid from {begin} to {end} only"
        names = [principal.decode(errors="replace").lower() for principal in certificate.valid_principals]
        if name.lower() not in names:
            return f"it is for {', '.join(names) or 'no host by name'}, not for {name}"
        return ""

    def _load(self) -> serialization.SSHCertificate:
        loaded = serialization.load_ssh_public_identity(f"{self.kind} ".encode() + base64.b64encode(self.blob))
        if not isinstance(loaded, serialization.SSHCertificate):
            raise ValueError("it is a plain key")
        return loaded

    def _signed_with_sha1(self, certificate: serialization.SSHCertificate) -> bool:
        """The last field is the signature: a string of its algorithm's name and the signature's own string."""
        key = certificate.signature_key()
        if not isinstance(key, rsa.RSAPublicKey):
            return False
        end = len(self.blob) - (key.key_size + 7) // 8 - 4
        return self.blob[end - len(_SHA1_SIGNATURE) : end] == _SHA1_SIGNATURE


_OPENSSH = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _day(moment: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))
    except (OverflowError, ValueError, OSError):
        return "for ever"
