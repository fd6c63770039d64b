"""A Redis URL, taken apart: one server, a primary that Sentinels know, or a cluster; as whom; with TLS or without.

    redis://user:password@host:port/db
    redis+sentinel://user:password@host:port,host:port/service/db     hosts are Sentinels; also plain `sentinel://`
    redis+cluster://user:password@host:port,host:port                 hosts are some of its nodes
    rediss://, rediss+sentinel://, rediss+cluster://                  the same, with TLS
    unix:///path/to/socket?db=1

After `?` may stand the settings of OPTIONS. What is special in a URL (`@ : / ? # %`) is percent-encoded in user and
password. Opens no connection; reads the files that TLS needs, so that a wrong one is met here, by its name.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

Form = Literal["server", "sentinel", "cluster", "socket"]
Host = tuple[str, int]

SCHEMES: dict[str, tuple[Form, bool]] = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "redis+sentinel": ("sentinel", False),
    "sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "unix": ("socket", False),
}
"""Scheme -> (form, TLS)."""
PORTS: dict[Form, int] = {"server": 6379, "cluster": 6379, "sentinel": 26379, "socket": 0}


def _bool(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise ValueError(f"expected true or false, got {text!r}")
    return known[text.lower()]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"expected a number, got {text!r}")
    return int(text)


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"expected {' or '.join(words)}, got {text!r}")
        return text

    return read


OPTIONS: dict[str, Callable[[str], Any]] = {
    "db": _number,  # a unix socket's, which has no other place for it
    "client_name": str,  # shown by CLIENT LIST
    "ssl_ca_certs": str,  # a file of CA certificates to trust; the system's are the default
    "ssl_certfile": str,  # our own certificate, where the server asks for one
    "ssl_keyfile": str,  # and its key
    "ssl_password": str,  # and what that is encrypted with
    "ssl_check_hostname": _bool,  # false: any host may show a certificate that the CA has signed
    "ssl_cert_reqs": _one_of("required", "none"),  # none: encrypted, but to whoever answers
    "sentinel_username": str,  # the Sentinels' own login
    "sentinel_password": str,
}


@dataclass(frozen=True)
class Address:
    """Where a Redis is and how to be let in. Raises ValueError, by `parse`, for what is no such URL."""

    form: Form
    hosts: tuple[Host, ...] = ()
    """The server, Sentinels, or nodes of the cluster to begin with."""
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    service: str | None = None
    """The name under which Sentinels know the primary."""
    path: str | None = None
    """The socket's."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> Address:
        """Take `url` apart. Raises ValueError, which names the part that is wrong."""
        scheme, _, _ = url.partition("://")
        if scheme not in SCHEMES or "://" not in url:
            raise ValueError(f"a scheme is one of {', '.join(SCHEMES)}")
        form, tls = SCHEMES[scheme]
        parts = urlsplit(url)
        login, _, places = parts.netloc.rpartition("@")
        username, _, password = login.partition(":")
        hosts = () if form == "socket" else tuple(_host(place, form) for place in places.split(","))
        if form == "server" and len(hosts) > 1:
            several = "several are for redis+sentinel and redis+cluster"
            raise ValueError(f"expected one host, got {len(hosts)}: {several}")
        options = _options(parts.query, form, tls)
        service, db = _path(parts.path, form, options.pop("db", None))
        return cls(
            form=form,
            hosts=hosts,
            tls=tls,
            username=unquote(username) or None,
            password=unquote(password) or None,
            db=db,
            service=service,
            path=unquote(parts.path) if form == "socket" else None,
            options=options,
        )

    @property
    def login(self) -> dict[str, Any]:
        """A connection's arguments of who we are, to the servers that hold the data."""
        named = {name: value for name, value in self.options.items() if name == "client_name"}
        return {"username": self.username, "password": self.password, **named}

    @property
    def sentinel_login(self) -> dict[str, Any]:
        """And to Sentinels, which have users of their own."""
        return {name: self.options.get(f"sentinel_{name}") for name in ("username", "password")}

    @property
    def encryption(self) -> dict[str, Any]:
        """An SSL connection's arguments, with their defaults said: those of redis-py differ from version to version."""
        if not self.tls:
            return {}
        given = {name: value for name, value in self.options.items() if name.startswith("ssl_")}
        settings: dict[str, Any] = {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **given}
        return settings | ({"ssl_check_hostname": False} if settings["ssl_cert_reqs"] == "none" else {})


def _host(place: str, form: Form) -> Host:
    match = re.fullmatch(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]]*)(?::(?P<port>[^:]*))?", place)
    if match is None:
        raise ValueError(f"expected host:port, got {place!r}; an IPv6 address stands in [ ]")
    port = match["port"] or str(PORTS[form])
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"a port is a number from 1 to 65535, got {port!r}")
    return unquote(match["host"]).strip("[]") or "localhost", int(port)


def _path(path: str, form: Form, db: int | None) -> tuple[str | None, int]:
    """The service, which Sentinels alone need, and the number of the database."""
    if form == "socket":
        return None, db or 0
    first, *rest = path.removeprefix("/").split("/")
    service: str | None = None
    if form == "sentinel":
        if not first:
            raise ValueError("after the Sentinels stands the name of the service: /mymaster or /mymaster/0")
        service, first, rest = unquote(first), rest[0] if rest else "", rest[1:]
    if rest or not ((first.isascii() and first.isdigit()) or first == ""):
        raise ValueError(f"a database is a number, got {'/'.join([first, *rest])!r}")
    number = int(first) if first else db or 0
    if form == "cluster" and number:
        raise ValueError(f"a cluster has database 0 alone, got {number}")
    return service, number


def _options(query: str, form: Form, tls: bool) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):  # not urllib's parse_qsl, by which a `+` in a path is a blank
        name, _, text = pair.partition("=")
        if name not in OPTIONS:
            raise ValueError(f"unknown setting {name!r} after `?`; there are {', '.join(OPTIONS)}")
        if name.startswith("ssl_") and not tls:
            raise ValueError(f"{name} is for TLS: begin with rediss instead of redis")
        if name.startswith("sentinel_") and form != "sentinel":
            raise ValueError(f"{name} is for a URL of Sentinels")
        try:
            options[name] = OPTIONS[name](unquote(text))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if tls:
        _check_files(options)
    return options


def _check_files(options: Mapping[str, Any]) -> None:
    """Read what TLS will need, since a file that is wrong would else look like a server that is."""
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if name in options:
            try:
                with open(options[name], "rb"):
                    pass
            except OSError as error:
                raise ValueError(f"{name}: can't read {options[name]}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca := options.get("ssl_ca_certs"):
        try:
            context.load_verify_locations(cafile=ca)
        except ssl.SSLError as error:
            raise ValueError(f"ssl_ca_certs: {ca} holds no certificate in PEM ({_reason(error)})") from None
    key = options.get("ssl_keyfile")
    if cert := options.get("ssl_certfile"):
        try:
            context.load_cert_chain(cert, key, lambda: options.get("ssl_password", ""))
        except ssl.SSLError as error:
            said = f"{cert} with key {key or cert}: not a certificate and its key in PEM"
            raise ValueError(f"ssl_certfile: {said}, or the wrong ssl_password ({_reason(error)})") from None
    elif key:
        raise ValueError("ssl_keyfile needs ssl_certfile beside it")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def redact(url: str) -> str:
    """`url` without its passwords, whatever else may be wrong with it."""
    url = re.sub(r"(?<=://)([^:@/?]*):.*@", r"\1:***@", url)
    return re.sub(r"(?<=password=)[^&]*", "***", url)
