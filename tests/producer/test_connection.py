"""URLs of Redis: what each form means, and what is said of one that is wrong. No server is asked here."""

import asyncio
import os
import shutil
import subprocess

import pytest

from producer.address import Address, redact
from producer.connection import aconnect, connect, unavailable
from producer.errors import RedisUnavailable

OPENSSL_REQ = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes".split()


@pytest.mark.parametrize(
    ("url", "form", "hosts", "db", "service"),
    [
        ("redis://", "server", (("localhost", 6379),), 0, None),
        ("redis://example.org", "server", (("example.org", 6379),), 0, None),
        ("redis://example.org:7000/3", "server", (("example.org", 7000),), 3, None),
        ("redis://[::1]:7000/", "server", (("::1", 7000),), 0, None),
        ("redis+sentinel://a,b:26380/queue", "sentinel", (("a", 26379), ("b", 26380)), 0, "queue"),
        ("sentinel://a:1,b:2,c:3/queue/5", "sentinel", (("a", 1), ("b", 2), ("c", 3)), 5, "queue"),
        ("redis+cluster://a:1,b", "cluster", (("a", 1), ("b", 6379)), 0, None),
        ("redis+cluster://a:1/0", "cluster", (("a", 1),), 0, None),
        ("unix:///run/redis.sock?db=2", "socket", (), 2, None),
    ],
)
def test_each_form_names_its_hosts(url, form, hosts, db, service):
    """Hosts, ports where none is said, database and service."""
    address = Address.parse(url)
    assert (address.form, address.hosts, address.db, address.service) == (form, hosts, db, service)
    assert not address.tls


@pytest.mark.parametrize("where", ["redis://{}@a:1/0", "redis+sentinel://{}@a:1,b/queue", "redis+cluster://{}@a:1,b"])
def test_user_and_password_are_decoded(where):
    """What is special in a URL is percent-encoded in both, and may stand for anything."""
    address = Address.parse(where.format("anna%3A:p%40ss%2F%3Fword"))
    assert address.login == {"username": "anna:", "password": "p@ss/?word"}


def test_sentinels_have_a_login_of_their_own():
    """Users of the servers are not users of the Sentinels."""
    address = Address.parse("sentinel://anna:one@a/queue?sentinel_username=bert&sentinel_password=two")
    assert address.login == {"username": "anna", "password": "one"}
    assert address.sentinel_login == {"username": "bert", "password": "two"}
    assert Address.parse("sentinel://anna:one@a/queue").sentinel_login == {"username": None, "password": None}


@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster"])
def test_tls_checks_certificate_and_host_unless_told_otherwise(scheme):
    """The safe settings are the default, whatever redis-py's are."""
    assert Address.parse(f"{scheme}://a").encryption == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    loose = Address.parse(f"{scheme}://a?ssl_cert_reqs=none").encryption
    assert loose == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost", "a scheme is one of redis, rediss"),
        ("redis:/localhost", "a scheme is one of"),
        ("redis://localhost:port/0", "a port is a number from 1 to 65535, got 'port'"),
        ("redis://localhost:70000/0", "a port is a number"),
        ("redis://::1/0", r"an IPv6 address stands in \[ \]"),
        ("redis://a,b/0", "expected one host, got 2: several are for redis.sentinel and redis.cluster"),
        ("redis://localhost/zero", "a database is a number, got 'zero'"),
        ("redis://localhost/?wings=2", "unknown setting 'wings'"),
        ("redis://localhost/?socket_timeout=2", "unknown setting 'socket_timeout'"),
        ("redis://localhost/?ssl_ca_certs=/ca.pem", "ssl_ca_certs is for TLS: begin with rediss"),
        ("redis://localhost/?sentinel_password=a", "sentinel_password is for a URL of Sentinels"),
        ("redis+sentinel://localhost", "the name of the service"),
        ("redis+sentinel://localhost/queue/0/1", "a database is a number, got '0/1'"),
        ("redis+cluster://localhost/1", "a cluster has database 0 alone"),
        ("rediss://localhost?ssl_check_hostname=maybe", "ssl_check_hostname: expected true or false, got 'maybe'"),
        ("rediss://localhost?ssl_cert_reqs=some", "ssl_cert_reqs: expected required or none"),
        ("rediss://localhost?ssl_ca_certs=/no/ca.pem", "ssl_ca_certs: can't read /no/ca.pem: No such file"),
        ("rediss://localhost?ssl_keyfile=/dev/null", "ssl_keyfile needs ssl_certfile"),
        ("unix:///run/redis.sock?db=two", "db: expected a number"),
    ],
)
def test_a_wrong_url_is_told_what_is_wrong_with_it(url, says):
    """Before anything is opened, in both clients: the URL, its wrong part, and what belongs there."""
    for open_client in (connect, aconnect):
        with pytest.raises(RedisUnavailable, match=says) as caught:
            open_client(url)
        assert str(caught.value).endswith("correct it")


def test_a_file_that_is_no_certificate_is_named(tmp_path):
    """Not the server is wrong then, though TLS' own errors read as if it were."""
    (tmp_path / "ca.pem").write_text("not a certificate\n")
    with pytest.raises(RedisUnavailable, match=r"ssl_ca_certs: .*ca\.pem holds no certificate in PEM"):
        connect(f"rediss://localhost?ssl_ca_certs={tmp_path / 'ca.pem'}")
    with pytest.raises(RedisUnavailable, match=r"ssl_certfile: .*ca\.pem.*: not a certificate and its key"):
        connect(f"rediss://localhost?ssl_certfile={tmp_path / 'ca.pem'}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    """Permission denied, and for what."""
    (tmp_path / "key.pem").write_text("")
    (tmp_path / "key.pem").chmod(0)
    with pytest.raises(RedisUnavailable, match=r"ssl_keyfile: can't read .*key\.pem: Permission denied"):
        connect(f"rediss://localhost?ssl_certfile=/dev/null&ssl_keyfile={tmp_path / 'key.pem'}")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make keys with")
def test_a_key_of_another_certificate_is_named(tmp_path):
    """Both files are in order, but not each other's."""
    for name in ("one", "two"):
        subprocess.run(
            [*OPENSSL_REQ, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"],
            cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip
    with pytest.raises(RedisUnavailable, match=r"one\.pem with key .*two\.key: not a certificate and its key"):
        connect(f"rediss://localhost?ssl_certfile={tmp_path}/one.pem&ssl_keyfile={tmp_path}/two.key")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://example.org:6379/0", "redis://example.org:6379/0"),
        ("redis://anna:secret@example.org", "redis://anna:***@example.org"),
        ("redis://:secret@example.org", "redis://:***@example.org"),
        ("redis://anna:se/c?re@t@example.org", "redis://anna:***@example.org"),
        ("sentinel://a:secret@b:1,c:2/queue?sentinel_password=secret", "sentinel://a:***@b:1,c:2/queue?sentinel_password=***"),
        ("rediss://a?ssl_password=secret&ssl_certfile=c", "rediss://a?ssl_password=***&ssl_certfile=c"),
    ],
)  # fmt: skip
def test_no_message_repeats_a_password(url, shown):
    """Also where the URL is written wrongly."""
    assert redact(url) == shown
    assert "secret" not in str(unavailable(url, ConnectionError("refused")))


def test_a_client_can_be_made_without_a_server():
    """Whoever starts first waits for the other: nothing is opened before it is used, and all forms can be closed."""
    for url in (
        "redis://127.0.0.1:1",
        "sentinel://127.0.0.1:1/queue",
        "redis+cluster://127.0.0.1:1",
        "unix:///no.sock",
    ):
        with connect(url, resends=0) as client, pytest.raises(Exception, match=r"127\.0\.0\.1:1|no\.sock|No master"):
            client.ping()

        async def try_it(url=url):
            async with aconnect(url, resends=0) as client:
                with pytest.raises(Exception, match=r"127\.0\.0\.1:1|no\.sock|No master"):
                    await client.ping()

        asyncio.run(try_it())
