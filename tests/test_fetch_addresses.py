"""Which addresses are asked for a picture, and which are not."""

from __future__ import annotations

from http.client import NotConnected
from http.server import BaseHTTPRequestHandler

import pytest
from fetching import MB, OTHER, PICTURE, PUBLIC, refusing

from datasette_image_similarity.errors import ImageError
from datasette_image_similarity.fetch import Refused
from datasette_image_similarity.fetch.addresses import is_public, parse, redirected
from datasette_image_similarity.fetch.exchange import connect

pytest_plugins = ["fetching_fixtures"]


@pytest.mark.parametrize(
    "ip",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "0.1.2.3", "10.1.2.3", "172.16.0.1"),
        *("192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1"),
        *("198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%1", "fc00::1", "fd00:ec2::254", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::127.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808"),
        *("2002:7f00:1::", "2002:c0a8:101::1", "2001:0:808:808::1", "2001:db8::1"),
        *("fec0::1", "100::1", "4000::1", "::ffff:0:127.0.0.1", "nonsense", ""),
    ],
)
def test_not_public(ip):
    assert not is_public(ip)


@pytest.mark.parametrize(
    "ip",
    ["8.8.8.8", PUBLIC, "2606:2800:21f:cb07::1", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_public(ip):
    assert is_public(ip)


@pytest.mark.parametrize(
    ("answers", "refused"),
    [
        (["10.0.0.1"], True),
        ([PUBLIC, "10.0.0.1"], True),
        (["::ffff:7f00:1"], True),
        ([PUBLIC, "2606:2800:21f:cb07::1"], False),
    ],
)
def test_a_name_is_asked_if_all_its_addresses_are_public(
    site, make, dialled, answers, refused
):
    fetcher = make(allow_private=False, resolve=lambda host, port: answers)
    site.serve()
    if refused:
        with pytest.raises(Refused, match="not public"):
            fetcher.read("http://pictures.test/a.jpg", MB)
        assert dialled == []
    else:
        assert fetcher.read("http://pictures.test/a.jpg", MB) == PICTURE
        assert dialled == [(PUBLIC, 80)]
        assert site.requests[0][1]["host"] == "pictures.test"


def test_the_address_that_was_checked_is_the_one_that_is_asked(site, make, dialled):
    """A name server that gives another answer each time gains nothing."""
    answers = iter([[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]])
    fetcher = make(allow_private=False, resolve=lambda host, port: next(answers))
    site.serve("/a.jpg", connection="close")
    assert fetcher.read("http://rebind.test/a.jpg", MB) == PICTURE
    assert dialled == [(PUBLIC, 80)]
    with pytest.raises(Refused, match="not public"):
        fetcher.read("http://rebind.test/b.jpg", MB)
    assert dialled == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1"),
        *("[::1]", "[::ffff:7f00:1]", "[::ffff:127.0.0.1]", "[::]", "0", "localhost"),
        *("127.0.0.1.", "１２７.０.０.１", "127。0。0。1", "LOCALHOST"),
    ],
)
def test_this_computer_is_not_asked_however_it_is_spelled(make, dialled, host):
    with pytest.raises(ImageError):
        make(allow_private=False).read(f"http://{host}:8001/a.jpg", MB)
    assert dialled == []


@pytest.mark.parametrize(
    "location",
    [
        *("http://169.254.169.254/latest/meta-data/", "//127.0.0.1/", "http://[::1]/"),
        *("file:///etc/passwd", "ftp://pictures.test/a", "http://u:p@pictures.test/"),
        *("gopher://pictures.test:6379/_", "http://pictures.test:22/", "http://[/", ""),
        "/a\x00b",
    ],
)
def test_redirects_are_checked_like_any_address(site, make, dialled, location):
    def resolve(host: str, port: int) -> list[str]:
        return [PUBLIC] if host == "pictures.test" else [host]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: ")
        handler.wfile.write(location.encode() + b"\r\n\r\n")

    site.answers["/a.jpg"] = answer
    fetcher = make(allow_private=False, resolve=resolve, redirects=3)
    with pytest.raises(ImageError, match=r"redirect|not public"):
        fetcher.read("http://pictures.test/a.jpg", MB)
    assert set(dialled) == {(PUBLIC, 80)}


def test_redirects_are_followed_to_other_hosts(site, make, dialled):
    names = {"one.test": [PUBLIC], "xn--bcher-kva.test": [OTHER]}
    fetcher = make(allow_private=False, resolve=lambda host, port: names[host])
    site.serve("/a.jpg", status=301, location="http://bücher.test/b%20c d.jpg?x=ü#z")
    site.serve("/b%20c%20d.jpg?x=%C3%BC")
    assert fetcher.read("http://one.test/a.jpg", MB) == PICTURE
    assert dialled == [(PUBLIC, 80), (OTHER, 80)]


def test_redirects_end(site, make):
    url = site.serve(status=302, location="/a.jpg")
    with pytest.raises(ImageError, match="redirects more than 3 times"):
        make(redirects=3).read(url, MB)
    assert len(site.requests) == 4


def test_https_is_not_left():
    secure = parse("https://pictures.test/a.jpg")
    assert redirected(secure, "/b.jpg").url == "https://pictures.test/b.jpg"
    with pytest.raises(Refused, match="from https to http"):
        redirected(secure, "http://pictures.test/a.jpg")


@pytest.mark.parametrize(
    "url",
    [
        *("", "  ", "a.jpg", "/a.jpg", "//host/a.jpg", "http:a.jpg", "http:///a.jpg"),
        *("ftp://host/a", "file:///etc/passwd", "data:image/png;base64,", "javascript:1"),
        *(
            "http://public@127.0.0.1/",
            "http://u:p@host/",
            "http://host\\@other/",
            "http://@h/",
        ),
        *(
            "http://ho st/",
            "http://host\n/",
            "http://ho\tst/",
            "http://h\r\nX: y/",
            "http://h\0/",
        ),
        *("http://host/a\r\nX-Injected: 1", "http://host/\ud800"),
        *("http://host:0/", "http://host:22/", "http://host:25/", "http://host:99999/"),
        *("http://host:-1/", "http://host:８０/x:y", "http://[::1/", "http://[v1.x]/"),
        *("http://[fe80::1%25eth0]/", "http://host%2eother/", "http://-/", "http://./"),
        *(
            "http://" + "a" * 64 + ".test/",
            "http://a..test/",
            "http://host/" + "a" * 9000,
            "http://a..ü/",
        ),
    ],
)
def test_what_is_no_url_of_a_picture_is_refused(url):
    with pytest.raises(Refused):
        parse(url)


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        (" HTTP://Host.TEST:80/a.jpg#top\n", "http://host.test/a.jpg"),
        ("https://host.test.:443", "https://host.test/"),
        ("http://host/my photo (1).jpg", "http://host/my%20photo%20(1).jpg"),
        ("http://host/my%20photo.jpg?w=100%&é", "http://host/my%20photo.jpg?w=100%&%C3%A9"),
        ("http://bücher.example:8080/", "http://xn--bcher-kva.example:8080/"),
        ("http://ＢüCHER。example/", "http://xn--bcher-kva.example/"),
        ("http://faß.de/", "http://xn--fa-hia.de/"),
        ("http://[2606:2800:0::1]/?a?b", "http://[2606:2800::1]/?a?b"),
        ("http://a_b.test///x/../y", "http://a_b.test///x/../y"),
    ],
)
def test_spellings_of_a_url(url, plain):
    assert parse(url).url == plain


def test_proxies_are_not_used_and_the_message_says_so(site, make, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert make().read(site.serve(), MB) == PICTURE
    with pytest.raises(ImageError, match=r"proxies .* are not used"):
        make().read(refusing(), MB)


def test_a_name_without_an_address_is_none(make):
    for allowed in (True, False):
        with pytest.raises(ImageError, match="cannot be reached: it has no address"):
            make(allow_private=allowed, resolve=lambda *_: []).read("http://no.test/", MB)


def test_a_connection_looks_no_name_up_itself(site):
    address = parse(site.url())
    connection = connect(address, ["127.0.0.1"], None, 10)
    connection.close()
    with pytest.raises(NotConnected):
        connection.request("GET", "/")
