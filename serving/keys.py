"""`Keys`: the API keys that a server accepts.

keys = Keys.read(Path("keys.txt"))          # one per line; blank lines and lines that begin with # are skipped
keys.allow("Bearer 0123456789abcdef")       # True or False, in constant time
"""

import ipaddress
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from dpad.runtime.bundle.files import read_text
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.show import told

_SHORTEST = 16  # characters of a key; shorter ones can be guessed


class Keys:
    """A set of keys, kept as digests only."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Read the keys of a file; raises `InvalidRequest` if it holds none, or one that is too short."""
        try:
            lines = [line.strip() for line in read_text(path).splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"the keys cannot be read: {told(error)}") from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise InvalidRequest(f"{path} holds no key; write one per line")
        if short := next((number for number, key in enumerate(keys, 1) if len(key) < _SHORTEST), None):
            raise InvalidRequest(f"key {short} of {path} is shorter than {_SHORTEST} characters; take a longer one")
        return cls(keys)

    def allow(self, authorization: str) -> bool:
        """Whether a header `Authorization` carries a known key; it is always compared with all of them."""
        scheme, _, given = authorization.partition(" ")
        digest = _digest(given.strip())
        right = sum(compare_digest(digest, known) for known in self._digests)
        return right > 0 and scheme.lower() == "bearer"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
