"""rediss:// on a real server: a CA of one's own, client certificates, and each mistake told from the others."""

import asyncio
import shutil
import subprocess

import pytest

from ops import redis_server as redis_servers
from producer import AsyncProducer, Producer, RedisUnavailable
from tests.reach.conftest import QUEUE

if shutil.which("openssl") is None:
    pytest.skip("no openssl here to make certificates with", allow_module_level=True)

REQUEST = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes".split()


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A CA, what it has signed for a server at 127.0.0.1 and for a client, and a CA that nobody knows."""
    folder = tmp_path_factory.mktemp("keys")

    def openssl(*words):
        subprocess.run(words, cwd=folder, check=True, capture_output=True)

    for ca in ("ca", "stranger"):
        openssl(*REQUEST, "-x509", "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-subj", f"/CN={ca}")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    signed = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names".split()
    for name in ("server", "client"):
        openssl(*REQUEST, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("openssl", "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    return folder


@pytest.fixture(scope="module")
def start_tls(keys):
    """`start_tls(ask_clients)` is the port of a server with TLS. Skips where the server here was built without."""

    def start(ask_clients):
        port = redis_servers.free_port()
        config = {
            "tls-port": str(port),
            "tls-cert-file": str(keys / "server.pem"),
            "tls-key-file": str(keys / "server.key"),
            "tls-ca-cert-file": str(keys / "ca.pem"),
            "tls-auth-clients": "yes" if ask_clients else "no",
        }
        try:
            return redis_servers.start(config=config), port
        except redis_servers.RedisUnavailable as error:
            if "tls-" not in str(error) or "Bad directive" not in str(error):
                raise
            pytest.skip(f"{redis_servers.find()} was built without TLS")

    return start


@pytest.fixture(scope="module", params=[False, True], ids=["plain clients", "clients with certificates"])
def server(request, start_tls, keys):
    """(url without settings, what a client has to bring)"""
    started, port = start_tls(request.param)
    own = f"&ssl_certfile={keys}/client.pem&ssl_keyfile={keys}/client.key" if request.param else ""
    with started:
        yield started, f"rediss://127.0.0.1:{port}/0", f"?ssl_ca_certs={keys}/ca.pem{own}"


def refusal(url, timeout_s):
    """What both clients say of a URL that leads nowhere."""

    async def go():
        async with AsyncProducer(url, timeout_s=timeout_s) as producer:
            await producer.submit(prompt="a")

    with Producer(url, timeout_s=timeout_s) as producer, pytest.raises(RedisUnavailable) as caught:
        producer.submit(prompt="a")
    with pytest.raises(RedisUnavailable) as acaught:
        asyncio.run(go())
    return f"{caught.value} | {acaught.value}"


def said_by_both(url, words, timeout_s=5.0):
    told = refusal(url, timeout_s).split(" | ")
    return [words in sentence for sentence in told] == [True, True] or told


def test_a_ca_of_ones_own_is_trusted(server):
    """Both clients reach the server that the CA has signed for."""
    _, url, settings = server

    async def go(job):
        async with AsyncProducer(url + settings, queue=QUEUE) as producer:
            return (await producer.status(job)).state

    with Producer(url + settings, queue=QUEUE) as producer:
        job = producer.submit(prompt="a")
        assert producer.status(job).state == "queued"
    assert asyncio.run(go(job)) == "queued"


def test_an_unknown_ca_is_not_trusted(server, keys):
    """Neither by the system's CAs nor by another's: the setting to give is named."""
    _, url, settings = server
    for wrong in (settings.replace("/ca.pem", "/stranger.pem"), settings.replace("ssl_ca_certs=", "client_name=")):
        assert said_by_both(url + wrong, "shows a certificate that we don't trust") is True


def test_a_certificate_for_another_host_is_refused(server):
    """`localhost` is no name in it. Who may know better says so in the URL."""
    _, url, settings = server
    elsewhere = url.replace("127.0.0.1", "localhost")
    assert said_by_both(elsewhere + settings, "shows a certificate for another host") is True
    with Producer(f"{elsewhere}{settings}&ssl_check_hostname=false") as producer:
        producer.submit(prompt="a")


def test_a_server_that_asks_for_a_certificate_is_told_apart(start_tls, keys):
    """It is not down, and its own certificate is in order: ours is missing."""
    started, port = start_tls(True)
    with started:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={keys}/ca.pem"
        assert said_by_both(url, "asks for our certificate") is True  # TLS 1.3 may close before it says so


def test_tls_and_none_are_told_apart(server, keys):
    """A plain Redis waits for the end of a line that never comes; the sentence says what that may mean."""
    started, _, settings = server
    plain = started.url.replace("redis://", "rediss://")
    assert said_by_both(plain + settings, "that this port is one for TLS", timeout_s=0.3) is True
