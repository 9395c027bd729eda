"""``llmproxy doctor --from-client``, and its file alone, against real proxies and what is before them."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from llmproxy.doctor import doctor_client
from tests.integration.proxy import KEY, Proxy, demo, running
from tests.integration.test_doctor import Found, by_check, failing, serving

STALE = "a-key-of-last-quarter"


@pytest.fixture(scope="module")
def proxy(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy whose model writes at a model's pace."""
    with running(kind, tmp_path_factory.mktemp("client"), {"a": demo("--token-delay", "0.02")}) as proxy:
        yield proxy


def alone(
    folder: Path, *arguments: str, key: str | None = KEY, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a copy of the file, with nothing but Python."""
    copy = folder / "doctor_client.py"
    shutil.copy(doctor_client.__file__, copy)
    keys = {"VLLM_API_KEY": key} if key is not None else {}
    return subprocess.run(
        # Neither this environment's packages nor llmproxy's sources are to be seen.
        [sys.executable, "-I", "-S", str(copy), *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **keys, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def asked(folder: Path, *arguments: str, **options: Any) -> Found:
    """What it finds."""
    return by_check(alone(folder, *arguments, "--json", **options).stdout)


def test_the_file_alone(proxy: Proxy, tmp_path: Path) -> None:
    """All steps to a streamed answer are well, and the key is not shown."""
    url = f"http://127.0.0.1:{proxy.port}"
    done = alone(tmp_path, url, "--model", "a-model")
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", f"client.{step}"]
        for step in [
            "name",
            "connect",
            "healthz",
            "clock",
            "readyz",
            "no_key",
            "models",
            "completion",
            "streaming",
        ]
    ]
    assert "first word after" in lines[-2]
    assert "one by one" in lines[-1]
    assert KEY not in done.stdout


def test_the_command(proxy: Proxy) -> None:
    """The same checks by llmproxy itself, with the key of ./.env or of the variable that is named."""
    (proxy.folder / ".env").write_text(f"VLLM_API_KEY={KEY}\nOTHER={STALE}\n")
    environment = proxy.environ()
    del environment["VLLM_API_KEY"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llmproxy", "doctor", "--from-client", f"127.0.0.1:{proxy.port}"]
        return subprocess.run(
            [*command, *arguments],
            cwd=proxy.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = run("--model", "a-model", "--json")
    assert done.returncode == 0, done
    assert failing(by_check(done.stdout)) == set()
    done = run("--key-env", "OTHER")
    assert done.returncode == 1
    assert "The key in OTHER is not accepted (401)." in done.stdout
    assert STALE not in done.stdout
    assert "From here" in done.stdout


def test_no_key_and_a_wrong_model(proxy: Proxy, tmp_path: Path) -> None:
    """Without a key the rest is left out; a model that is none is told with those that are."""
    url = f"http://127.0.0.1:{proxy.port}/v1"
    found = asked(tmp_path, url, "--model", "a-model", key=None)
    assert (found["client.models"][0]["status"], found["client.completion"][0]["status"]) == (
        "skipped",
        "skipped",
    )
    found = asked(tmp_path, url, "--model", "b-model")
    assert "a-model" in found["client.models"][0]["finding"]
    assert failing(found) == {"client.models"}


def test_who_is_not_there(tmp_path: Path) -> None:
    """A name without an address, and a port where nobody listens; each ends it."""
    found = asked(tmp_path, "http://llmproxy-doctor.invalid:8000")
    assert failing(found) == {"client.name"}
    assert len(found) == 1
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        found = asked(tmp_path, f"http://127.0.0.1:{free.getsockname()[1]}")
    assert failing(found) == {"client.connect"}
    assert "client.healthz" not in found


def test_a_proxy_of_the_environment(proxy: Proxy, tmp_path: Path) -> None:
    """It is gone around, and told, without its password."""
    squid = {"http_proxy": "http://me:sesame@127.0.0.1:9"}
    done = alone(tmp_path, f"http://127.0.0.1:{proxy.port}", **squid)
    assert done.returncode == 0, done
    assert "NO_PROXY=127.0.0.1" in done.stdout
    assert "sesame" not in done.stdout


def test_something_that_keeps_the_stream_back(proxy: Proxy, tmp_path: Path) -> None:
    """A server in between that reads a whole answer before it passes it on is noticed."""

    class Buffering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "nginx/1.22", ""

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
            with closing(connection):
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                whole = response.read()
            self.send_response(response.status)
            self.send_header("Content-Type", response.headers["Content-Type"])
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole)

        do_GET = do_POST = pass_on

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with serving(Buffering) as server:
        found = asked(tmp_path, f"http://127.0.0.1:{server.server_address[1]}", "--model", "a-model")
    assert failing(found) == set()
    (told,) = found["client.streaming"]
    assert told["status"] == "warn"
    assert "at once" in told["finding"]
    assert "proxy_buffering off" in told["fix"]
    assert "in between (nginx/1.22)" in found["client.healthz"][0]["finding"]


def test_a_model_that_dies(kind: str, tmp_path: Path) -> None:
    """A completion that fails is told with the proxy's own words."""
    backends = {"a": demo("--exit-after", "0.1", "--exit-code", "3", "--start-delay", "60")}
    (tmp_path / "proxy").mkdir()
    with running(kind, tmp_path / "proxy", backends) as proxy:
        found = asked(tmp_path, f"http://127.0.0.1:{proxy.port}", "--model", "a-model")
    assert failing(found) == {"client.completion"}
    assert "backend_start_failed" in found["client.completion"][0]["finding"]


def certificate(folder: Path, days: int) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself; and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=100))
        .not_valid_after(now + timedelta(days=days, minutes=5))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"cert{days}.pem", folder / f"key{days}.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


@pytest.mark.parametrize(("days", "status"), [(90, "ok"), (3, "warn"), (-2, "fail")])
def test_certificates(kind: str, tmp_path: Path, days: int, status: str) -> None:
    """One that is trusted is judged by its end; one that is not gets no key sent."""
    made, key = certificate(tmp_path, days)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "proxy").mkdir()
    with running(kind, tmp_path / "proxy", {}, start=False) as proxy:
        proxy.start("--listen", f"ssl:{port}:privateKey={key}:certKey={made}:interface=127.0.0.1")
        url = f"https://127.0.0.1:{port}"
        found = asked(tmp_path, url, SSL_CERT_FILE=str(made))
        assert found["client.tls"][0]["status"] == status, found
        assert ("client.models" in found) == (status != "fail")
        found = asked(tmp_path, url)
        assert failing(found) == {"client.tls"}
        assert "client.models" not in found
        found = asked(tmp_path, f"http://127.0.0.1:{port}")
        assert "https://" in found["client.healthz"][0]["fix"]
        found = asked(tmp_path, f"https://127.0.0.1:{proxy.port}")
        assert "http://" in found["client.tls"][0]["fix"]


def test_it_is_python_alone() -> None:
    """It loads with nothing installed, and tells what it takes."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", doctor_client.__file__, "--help"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0
    assert "--key-env" in done.stdout
