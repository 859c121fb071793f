"""Who may come in, where the server listens, and what its page may do."""

import base64
import hashlib
import ssl
import subprocess

import httpx2
import pytest

from serving import CHAT, HTTP, SAID, face, post, told
from tpimpi.errors import UserError
from tpimpi.serve.face import Face
from tpimpi.serve.page import _page
from tpimpi.serve.settings import FaceSettings


@pytest.fixture(scope="module")
def server():
    with face() as (server, _):
        yield server


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:99", "[::1]", "10.1.2.3", "a.localhost"])
def test_this_machines_names(server, host):
    assert post(server, CHAT, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "[::", "localhost.evil"]
)
def test_a_name_that_was_made_to_lead_here(server, host):
    error = told(post(server, CHAT, headers={"Host": host}), 403, "not this machine's name")
    assert error["code"] == "wrong_host"


def test_pages_of_other_origins(server):
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"):
        answer = post(server, CHAT, headers={"Origin": origin})
        told(answer, 403, "may not use this server")
        assert "access-control-allow-origin" not in answer.headers
    ask = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = HTTP.options(server.url + "/v1/chat/completions", headers=ask)
    assert answer.status_code == 403
    assert post(server, CHAT, headers={"Origin": server.url}).status_code == 200


def test_an_origin_that_is_let_in():
    with face(origins=("https://chat.example",), keys=("secret",)) as (server, _):
        origin = {"Origin": "https://chat.example"}
        wanted = origin | {"Access-Control-Request-Headers": "authorization,content-type"}
        answer = HTTP.options(server.url + "/v1/chat/completions", headers=wanted)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
        answer = post(server, CHAT, headers=origin)
        assert answer.status_code == 401  # which the page may read, and ask for the key
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        answer = post(server, CHAT, headers=origin | {"Authorization": "Bearer secret"})
        assert answer.status_code == 200
        told(post(server, CHAT, headers={"Origin": "https://other.example"}), 403)


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer wrong", "Basic one", "one", "Bearer ONE"]
)
def test_keys(given):
    with face(keys=("one", "two")) as (server, service):
        headers = {} if given is None else {"Authorization": given}
        for path in ("/v1/models", "/metrics", "/v1/ranks", "/nowhere"):
            answer = HTTP.get(server.url + path, headers=headers)
            assert told(answer, 401, "Authorization: Bearer")["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        told(post(server, CHAT, headers=headers), 401)
        assert not service.texts
        assert HTTP.get(server.url + "/health").status_code == 200
        for key in ("one", "two"):
            assert post(server, CHAT, headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_tls(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += [
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    with face(certificate=str(certificate), private_key=str(key)) as (server, _):
        assert server.url.startswith("https://")
        trust = ssl.create_default_context(cafile=certificate)
        answer = httpx2.post(server.url + "/v1/chat/completions", json=CHAT, verify=trust)
        assert answer.json()["choices"][0]["message"]["content"] == SAID
        answer = httpx2.post(server.url + "/v1/chat/completions", json=CHAT, verify=trust,
                             headers={"Origin": server.url})  # fmt: skip
        assert answer.status_code == 200
    other = tmp_path / "other.pem"
    subprocess.run(["openssl", "genrsa", "-out", other], check=True, capture_output=True)
    locked = tmp_path / "locked.pem"
    command = ["openssl", "rsa", "-in", other, "-aes128", "-passout", "pass:x", "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    for wrong in (other, locked, certificate, tmp_path / "nothing.pem", tmp_path):
        with pytest.raises(UserError, match="--ssl-"):
            Face(FaceSettings(port=0, certificate=str(certificate), private_key=str(wrong))).open()


# Where it listens.


def test_an_address_in_use(server):
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(UserError, match=f"--port {port} can't be listened at"):
        Face(FaceSettings(port=port)).open()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a..b", "x" * 300])
def test_a_host_that_is_not_this_one(host):
    with pytest.raises(UserError, match="--host"):
        Face(FaceSettings(host=host, port=0, keys=("k",))).open()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_need_a_key(host):
    with pytest.raises(UserError, match="--insecure"):
        Face(FaceSettings(host=host, port=0)).open()


def test_all_addresses_at_one_port():
    with face(host="localhost") as (server, _):
        assert HTTP.get(server.url + "/health").status_code == 200


def test_the_page_may_run_its_own_script_only(server, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    script = "<script>alert('</'+'b>')</script>"
    page.write_text(f"<!doctype html><style>b {{}}</style>{script}", encoding="utf-8")
    monkeypatch.setattr("tpimpi.serve.page.PAGE", page)
    _page.cache_clear()
    answer = HTTP.get(server.url)
    _page.cache_clear()
    assert answer.text == page.read_text() and answer.headers["content-type"].startswith(
        "text/html"
    )
    digest = base64.b64encode(hashlib.sha256(b"alert('</'+'b>')").digest()).decode()
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["script-src"] == f"'sha256-{digest}'" and policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
