"""TLS: what is to be had before it, and after ("TLS support", FORCEDTLS)."""

from __future__ import annotations

import ssl
import struct
import subprocess
from pathlib import Path

import pytest

from snapctl.errors import SnapctlError
from snapctl.services.nbd.server import tls_context
from tests.services.nbd import client as nbd
from tests.services.nbd.client import Client, info_request, query
from tests.services.nbd.serving import serving
from tests.support.requires import needs


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority (ca), and certificates that it has signed (server, client)."""
    openssl = needs("openssl", package="openssl")
    folder = tmp_path_factory.mktemp("keys")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True, timeout=30)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "3")
    run("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    for name in ("server", "client"):
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=DNS:localhost")
        run("req", "-x509", *new_key, *signed, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    return folder


def server_side(keys: Path, *, mutual: bool = False) -> ssl.SSLContext:
    return tls_context(str(keys / "server.pem"), str(keys / "server.key"), str(keys / "ca.pem") if mutual else None)


def client_side(keys: Path, *, certificate: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(keys / "ca.pem")
    if certificate:
        context.load_cert_chain(keys / "client.pem", keys / "client.key")
    return context


@pytest.mark.parametrize("form", nbd.FORMS)
@pytest.mark.parametrize("tcp", [False, True])
def test_volume_is_read_and_written_over_tls(tcp: bool, form: str, keys: Path, container: Path):
    with serving(container, tls=server_side(keys), tcp=True) as served:
        with Client(("127.0.0.1", served.port) if tcp else served.path) as client:
            client.start_tls(client_side(keys))
            client.go("db", form=form)
            assert client.read(4096, 9000) == b"new" * 3000
            data = bytes(range(256)) * 8192
            client.write(1000, data)
            assert client.read(1000, len(data)) == data
            cookies = [client.send_request(nbd.READ, n, 4096) for n in range(500)]
            assert {client.chunk(4096).cookie for _ in cookies} == set(cookies)
        assert all(address.startswith("nbds") for address in served.call(served.server.addresses))


def test_nothing_is_to_be_had_without_tls(keys: Path, container: Path):
    with serving(container, tls=server_side(keys)) as served, served.client() as client:
        for option in (nbd.LIST, nbd.STRUCTURED, nbd.EXTENDED, 4, 99):
            assert client.final(option) == nbd.TLS_REQD
        for option in (nbd.OPT_INFO, nbd.GO):
            assert client.option(option, info_request("db")) == [(nbd.TLS_REQD, b"")]
        assert client.final(nbd.SET_META, query("db", "base:allocation")) == nbd.TLS_REQD
        assert client.final(nbd.GO, bytes(100_000)) == nbd.TLS_REQD
        assert client.final(nbd.STARTTLS, b"data") == nbd.INVALID
        client.send_option(nbd.EXPORT_NAME, b"db")
        assert client.is_closed()


def test_aborting_needs_no_tls(keys: Path, container: Path):
    with serving(container, tls=server_side(keys)) as served, served.client() as client:
        assert client.final(nbd.ABORT) == nbd.ACK


def test_tls_begins_once(keys: Path, container: Path):
    with serving(container, tls=server_side(keys)) as served, served.client() as client:
        client.start_tls(client_side(keys))
        assert client.final(nbd.STARTTLS) == nbd.INVALID
        client.go("db")


def test_plain_text_slipped_in_behind_starttls_ends_the_connection(keys: Path, container: Path):
    with serving(container, tls=server_side(keys)) as served, served.client() as client:
        option = struct.pack(">8sLL", b"IHAVEOPT", nbd.STARTTLS, 0)
        client.send(option + struct.pack(">8sLL", b"IHAVEOPT", nbd.LIST, 0))
        with pytest.raises(nbd.Gone):
            client.receive(100)


def test_failed_tls_handshake_ends_the_connection_and_no_other(keys: Path, container: Path):
    with serving(container, tls=server_side(keys)) as served, served.client() as good:
        good.start_tls(client_side(keys))
        good.go("db")
        with served.client() as bad:
            assert bad.final(nbd.STARTTLS) == nbd.ACK
            bad.send(b"GET / HTTP/1.0\r\n\r\n" * 10)
            with pytest.raises(nbd.Gone):
                bad.receive(1000)
        assert good.read(4096, 3) == b"new"


def test_client_must_present_a_certificate_if_there_is_an_authority(keys: Path, container: Path):
    with serving(container, tls=server_side(keys, mutual=True)) as served:
        with served.client() as client:
            client.start_tls(client_side(keys, certificate=True))
            client.go("db")
            assert client.read(4096, 3) == b"new"
        with served.client() as client:
            client.start_tls(client_side(keys))  # which TLS 1.3 lets the client believe in
            with pytest.raises((nbd.Gone, OSError)):
                client.option(nbd.LIST)


@pytest.mark.parametrize(
    ("certificate", "key"), [("nope", "server.key"), ("server.pem", "client.key"), ("server.key", "server.key")]
)
def test_files_that_do_not_fit_are_an_error(certificate: str, key: str, keys: Path):
    with pytest.raises(SnapctlError):
        tls_context(str(keys / certificate), str(keys / key))
