"""A key and a certificate of our own, and tokens as Google signs them."""

import base64
import datetime
import json
import time
from functools import cached_property
from importlib.util import find_spec
from typing import Any
from unittest import skipUnless

from .loopback import Answer, Request

# For classes of tests: the packages of the group "clouds" are not there on every Python.
needs_google = skipUnless(find_spec("jwt") and find_spec("google"), "needs the group 'clouds'")

AUDIENCE = "https://shop.example"
EMAIL = "tasks-invoker@shop.iam.gserviceaccount.com"


class Signer:
    """An RSA key with a certificate, and the id by which tokens name it."""

    def __init__(self, kid: str = "key-1") -> None:
        self.kid = kid

    @cached_property
    def _key(self) -> Any:
        from cryptography.hazmat.primitives.asymmetric import rsa

        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @cached_property
    def certificate(self) -> str:
        """The certificate in PEM format."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import NameOID

        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM).decode()

    def token(self, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Return a token as Cloud Tasks sends it; a claim or header that is None is left out."""
        import jwt

        now = int(time.time())
        payload = {
            "iss": "https://accounts.google.com",
            "aud": AUDIENCE,
            "email": EMAIL,
            "email_verified": True,
            "sub": "1234567890",
            "azp": "1234567890",
            "iat": now,
            "exp": now + 3600,
        } | claims
        head = {"kid": self.kid} | (headers or {})
        return jwt.encode(
            {name: value for name, value in payload.items() if value is not None},
            self._key,
            algorithm="RS256",
            headers={name: value for name, value in head.items() if value is not None},
        )


class Keys:
    """What answers for Google's certificates: those of `signers`, to be kept for `max_age`."""

    def __init__(self, *signers: Signer, max_age: int = 3600) -> None:
        self.signers, self.max_age = list(signers), max_age
        self.is_down = False

    def __call__(self, request: Request) -> Answer:
        if self.is_down:
            return Answer(500)
        body = json.dumps({signer.kid: signer.certificate for signer in self.signers}).encode()
        return Answer(200, body, {"Cache-Control": f"public, max-age={self.max_age}, no-transform"})


def unsigned(header: Any, payload: Any, signature: str = "") -> str:
    """Return a token of these parts, whatever they are."""
    parts = [
        base64.urlsafe_b64encode(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, payload)
    ]
    return b".".join(part.rstrip(b"=") for part in parts).decode() + f".{signature}"
