"""Sockets and certificates, tried before a model is loaded. Nothing of HTTP."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl

from tpimpi.errors import UserError
from tpimpi.serve.settings import FaceSettings


def bound_sockets(settings: FaceSettings) -> list[socket.socket]:
    """Return a socket for each address of the host, bound and not yet listening.

    Port 0 takes a free one, the same at each address. Raises UserError.
    """
    where = f"--host {settings.host} --port {settings.port}"
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is no name of a host"
        raise UserError(f"--host {settings.host} is no address of this machine ({why})") from None
    _check_openness(settings, [address[0] for *_, address in found])
    sockets: list[socket.socket] = []
    port = settings.port
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            port = sock.getsockname()[1]
            sock.listen()  # an address in use may be noticed here only
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise UserError(
            f"{where} can't be listened at ({error.strerror}); end the program that does, or "
            "choose another --port (0: any that is free)"
        ) from None
    return sockets


def can_be_read(settings: FaceSettings, sockets: list[socket.socket]) -> bool:
    """Tell whether others on the network can read what passes, the key too."""
    addresses = [sock.getsockname()[0].partition("%")[0] for sock in sockets]
    alone = all(ipaddress.ip_address(address).is_loopback for address in addresses)
    return not alone and settings.certificate is None


def _check_openness(settings: FaceSettings, addresses: list[str]) -> None:
    """Refuse an address that other machines reach, without a key."""
    open_ones = [a for a in addresses if not ipaddress.ip_address(a.partition("%")[0]).is_loopback]
    if open_ones and not settings.keys and not settings.insecure:
        raise UserError(
            f"--host {settings.host} lets other machines use the model; ask them for a key with "
            "--api-key-file FILE, or let everybody in with --insecure"
        )


def check_certificate(settings: FaceSettings) -> None:
    """Refuse files that TLS can't begin with. Raises UserError."""
    if settings.certificate is None:
        if settings.private_key is not None:
            raise UserError("--ssl-keyfile is the key of a certificate; give --ssl-certfile, too")
        return
    files = {"--ssl-certfile": settings.certificate, "--ssl-keyfile": settings.private_key}
    for flag, path in files.items():
        if path is not None and not os.access(path, os.R_OK):
            why = "can't be read" if os.path.exists(path) else "does not exist"
            raise UserError(f"{flag} {path} {why}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.certificate, settings.private_key, _no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise UserError(
            f"--ssl-certfile {settings.certificate} and its key can't be used ({error}); give a "
            "certificate and its private key as PEM files, without a password"
        ) from None


def _no_password() -> str:
    raise ValueError("the private key has a password")


def base_url(settings: FaceSettings, sockets: list[socket.socket]) -> str:
    """Return the address that people are told: of all of this machine's, its name."""
    port, host = sockets[0].getsockname()[1], settings.host
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if settings.certificate else 'http'}://{host}:{port}"
