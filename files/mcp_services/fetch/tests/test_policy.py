"""URLs, and what the operator allows."""

import ipaddress
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatehouse_fetch import FetchError
from gatehouse_fetch.policy import Policy, Url, parse


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTPS://EXAMPLE.com:443/A?b=c#d", "https://example.com/A?b=c"),
        ("http://example.com:80/", "http://example.com/"),
        ("http://example.com:/", "http://example.com/"),
        ("http://example.com.:8080/x", "http://example.com:8080/x"),
        (" https://example.com/a b ", "https://example.com/a%20b"),
        ("https://example.com/ü?q=ü|[x]", "https://example.com/%C3%BC?q=%C3%BC%7C%5Bx%5D"),
        ("https://example.com/%C3%BC/%2e%2e/x", "https://example.com/%C3%BC/%2e%2e/x"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        ("https://my_host.example/", "https://my_host.example/"),
        ("http://192.0.2.7/", "http://192.0.2.7/"),
        ("http://[2001:DB8:0::1]:81/", "http://[2001:db8::1]:81/"),
        ("http://１２７.０.０.１/", "http://127.0.0.1/"),  # noqa: RUF001 - a browser reads it so; the guard refuses it
        ("http://ⓛocalhost/", "http://localhost/"),
        ("http://127.0.0.1#@example.com/", "http://127.0.0.1/"),
        ("http://127.0.0.1?@example.com/", "http://127.0.0.1/?@example.com/"),
    ],
)
def test_urls_in_plain_form(text: str, plain: str) -> None:
    assert str(parse(text)) == plain


@pytest.mark.parametrize(
    "text",
    [
        "", "example.com", "//example.com/", "/page", "https:example.com", "https:///page", "http://",
        "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "javascript:alert(1)", "data:text/html,x",
        "jar:http://example.com!/x", "unix:///run/x", "http+unix://%2Frun%2Fx/",
        "http://user@example.com/", "http://user:pass@example.com/", "http://@example.com/",
        "http://example.com@127.0.0.1/", "http://127.0.0.1\\@example.com/",
        "http://example.com\t/", "http://exa\nmple.com/", "http://example.com\x00.test/", "http:\\\\127.0.0.1\\",
        "http://example.com:99999/", "http://example.com:x/", "http://example.com:-1/", "http://example.com:8_0/",
        "http://2130706433/", "http://0x7f000001/", "http://0x7F.1/", "http://0177.0.0.1/", "http://127.1/",
        "http://127.0.1/", "http://00000127.0.0.1/", "http://127.0.0.1.0/", "http://256.0.0.1/", "http://0/",
        "http://1.2.3.4.5/", "http://0x/", "http://example.0x7f/", "http://127。1/", "http://127.0.0.0x1/",
        "http://127.0.0.1%2eexample.com/", "http://%31%32%37.0.0.1/", "http://exa mple.com/", "http://example..com/",
        "http://.example.com/", "http://-a.example/", "http://a,b.example/", "http://a!b/", "http://*/",
        "http://[::1/", "http://::1/", "http://[::1].example.com/", "http://example.com[::1]/", "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/", "http://[v1.x]/", "http://[127.0.0.1]/", "http://[]/", "http://[::1]x:80/",
        f"http://{'a' * 64}.example/", f"http://{'a.' * 130}example/", f"http://example.com/{'x' * 2048}",
        "http://xn--\u0661/", "http://\ud800.example/", "http://example.com/\ud800",
    ],
)  # fmt: skip
def test_what_is_not_fetched(text: str) -> None:
    with pytest.raises(FetchError) as refused:
        parse(text)
    assert str(refused.value).endswith(".")


@given(st.text(max_size=60) | st.from_regex(r"https?://[^/]{0,30}[/?#].{0,20}"))
@example("http://[::ffff:127.0.0.1]/")
def test_a_url_in_plain_form_means_the_same_to_every_parser(text: str) -> None:
    for candidate in (text, f"http://{text}"):
        try:
            url = parse(candidate)
        except FetchError:
            continue
        plain = str(url)
        assert plain.isascii()
        assert not set(plain) & set(" \\\t\r\n")
        assert parse(plain) == url
        parts = urlsplit(plain)
        assert parts.hostname == url.host
        assert (parts.username, parts.password, parts.fragment) == (None, None, "")
        assert plain == f"{url.scheme}://{url.authority}{url.target}"


@given(st.ip_addresses(v=4))
def test_one_spelling_of_an_ipv4_address(address: ipaddress.IPv4Address) -> None:
    number, parts = int(address), str(address).split(".")
    assert parse(f"http://{address}/").host == str(address)
    first, rest = parts[0], int.from_bytes(address.packed[1:], "big")
    for spelling in (
        str(number), hex(number), f"0{number:o}", f"{first}.{rest}", f"0{int(first):o}.{'.'.join(parts[1:])}",
        ".".join(hex(int(part)) for part in parts), f"{first}.{parts[1]}.{rest & 0xFFFF}", f"{address}.0", f"0{address}",
    ):  # fmt: skip
        with pytest.raises(FetchError):
            parse(f"http://{spelling}/")


@pytest.mark.parametrize(
    ("reference", "plain"),
    [
        ("/x", "https://example.com:8443/x"),
        ("x?y", "https://example.com:8443/a/x?y"),
        ("../x y", "https://example.com:8443/x%20y"),
        ("//other.example/x", "https://other.example/x"),
        ("http://other.example", "http://other.example/"),
        ("#top", "https://example.com:8443/a/b"),
    ],
)
def test_where_a_redirect_leads(reference: str, plain: str) -> None:
    assert str(parse("https://example.com:8443/a/b").join(reference)) == plain


@pytest.mark.parametrize(
    "reference", ["file:///etc/passwd", "http://a@b/", "http://127.1/", "/\x00", "http://[x", "\\\\127.0.0.1\\", "gopher://x/"]
)  # fmt: skip
def test_redirects_that_are_not_followed(reference: str) -> None:
    with pytest.raises(FetchError):
        parse("https://example.com/").join(reference)


@pytest.mark.parametrize(
    ("allow", "host", "address", "permitted"),
    [
        ("public", "a.example", "93.184.215.14", True),
        ("public", "a.example", "10.0.0.1", False),
        ("public", "a.example", "127.0.0.1", False),
        ("public,10.0.0.0/8", "a.example", "10.0.0.1", True),
        ("public,10.0.0.0/8", "a.example", "192.168.0.1", False),
        ("10.0.0.0/8", "a.example", "93.184.215.14", False),
        ("10.0.0.0/8", "10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "a.example", "10.1.2.3", True),
        ("fd00::/8", "a.example", "fd00::1", True),
        ("fd00::/8", "a.example", "fd00:ec2::254", False),
        ("100.64.0.0/10", "a.example", "100.100.100.200", False),
        ("0.0.0.0/0", "a.example", "127.0.0.1", False),
        ("0.0.0.0/0", "a.example", "169.254.169.254", False),
        ("0.0.0.0/0,::/0", "a.example", "::ffff:127.0.0.1", False),
        ("a.example", "a.example", "93.184.215.14", True),
        ("a.example", "b.example", "93.184.215.14", False),
        ("a.example", "a.example", "10.0.0.1", False),
        ("a.example", "x.a.example", "93.184.215.14", False),
        ("*.a.example", "x.y.a.example", "93.184.215.14", True),
        ("*.a.example", "a.example", "93.184.215.14", False),
        ("*.a.example", "xa.example", "93.184.215.14", False),
        (" A.Example , 10.0.0.0/8 ", "a.example", "93.184.215.14", True),
    ],
)
def test_what_an_operator_allows(allow: str, host: str, address: str, permitted: bool) -> None:
    assert Policy(allow, "80,443").permits(host, address) is permitted


def test_what_is_refused_before_a_name_is_resolved() -> None:
    policy = Policy("a.example", "443, 8080")
    policy.check(parse("https://a.example/"))
    for text, said in (
        ("http://a.example/", "Port 80 is not fetched from; allowed are 443, 8080."),
        ("https://a.example:22/", "Port 22"),
        ("https://b.example/", "b.example is not among the hosts"),
        ("https://93.184.215.14/", "not among the hosts"),
    ):
        with pytest.raises(FetchError, match=said):
            policy.check(parse(text))
    Policy("10.0.0.0/8", "80").check(Url("http", "intranet.example", 80, "/"))


@pytest.mark.parametrize(
    "allow", ["", "public,", "10.0.0.1/8", "http://a.example", "a.example:80", "*", "*.", "a.*.example", "10.0.0", "1", "public 10.0.0.0/8"]
)  # fmt: skip
def test_allow_lists_that_are_refused(allow: str) -> None:
    with pytest.raises(ValueError, match="must be public, names such as"):
        Policy(allow, "80")


@pytest.mark.parametrize(
    "allow", ["127.0.0.0/8", "127.0.0.1", "::1", "169.254.169.254", "fe80::/64", "::ffff:0:0/96", "64:ff9b::/96", "2002::/16"]
)  # fmt: skip
def test_nobody_can_allow_the_host_itself(allow: str) -> None:
    with pytest.raises(ValueError, match="must not name loopback"):
        Policy(f"public,{allow}", "80")


@pytest.mark.parametrize("ports", ["", "0", "65536", "80;443", "http", "-1", "+80", "8_0", "80,"])
def test_ports_that_are_refused(ports: str) -> None:
    with pytest.raises(ValueError, match="must be ports such as"):
        Policy("public", ports)
