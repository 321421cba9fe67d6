"""A proxy that ends TLS in front of a server that has none, and certificates for it."""

import asyncio
import ipaddress
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Certificate(NamedTuple):
    """Signed by its own key: files for both ends."""

    certificate: Path
    key: Path


def make_certificate(folder: Path, name: str) -> Certificate:
    """One for 127.0.0.1 alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return made


class TlsProxy:
    """Ends TLS in front of a TCP port, as stunnel does, on a thread of its own.

    Args:
        port: What it forwards to.
        server: Whom it says to be.
        clients: Who signs the certificates that clients must have; None: they need none.
        named: A port that replies name, as a Sentinel's do, and the port that clients are to find
            there instead, of as many digits.
    """

    def __init__(
        self,
        port: int,
        server: Certificate,
        *,
        clients: Certificate | None = None,
        named: tuple[int, int] | None = None,
    ) -> None:
        self._named = named
        self.num_connections = 0
        """That came through the handshake."""
        self._target = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(server.certificate, server.key)
        if clients is not None:
            self._context.load_verify_locations(clients.certificate)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda *_: None)  # of handshakes that fail, as they are to
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        begun = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        self.port = begun.result(60)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0, ssl=self._context)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(_pump(reader, ours), _pump(theirs, writer, self._named))

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    named: tuple[int, int] | None = None,
) -> None:
    try:
        while data := await reader.read(1 << 16):
            if named is not None:
                data = data.replace(*(str(port).encode() for port in named))
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
