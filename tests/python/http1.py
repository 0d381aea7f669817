"""Requests of HTTP/1 as no library would send them, through the proxy to an app.

    http1.py HOST PORT CERTIFICATE KEY APP_PORT PROXY_PID [GROUP...]

Prints what did not come out as it must, and ends with 1 if there was any. The policies allow all but
paths below `/denied`, the host `denied.example`, the method DELETE and the field `x-deny: yes`.
"""

import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote

from wire import OK, Cut, Site, Table, body_of, exchange, finish, get, is_field, parse_fields, post

table = Table()
CHUNKED = "Transfer-Encoding: chunked"
SMUGGLED = b"GET /denied HTTP/1.1\r\nHost: a\r\n\r\n"


@table.group
def lengths_and_encodings(site):
    # FAULTS 81, 83
    smuggled = b"0\r\n\r\n" + SMUGGLED
    for fields in [
        ("Content-Length: 6", CHUNKED),
        (CHUNKED, "Content-Length: 6"),
        ("Content-Length: 0", CHUNKED),
        (CHUNKED, "Content-Length: 0"),
        ("content-length: 4", "transfer-encoding: chunked"),
        ("Content-Length: 6", "Transfer-Encoding: identity"),
        ("Content-Length: 6", "Transfer-Encoding: gzip"),
        ("Content-Length: 6", "Transfer-Encoding:"),
        ("Content-Length: x", CHUNKED),
    ]:
        site.refused(f"{fields}", post(*fields, body=smuggled))
        site.refused(f"{fields} in pieces", post(*fields), smuggled)
    for value in (
        "+5 -5 0x5 5,5 5,6 5; 5.0 05 1e1 five 5\x00 \x0b5 5\xa0 \"5\" 18446744073709551616 "
        "18446744073709551621 9223372036854775808 99999999999999999999999999 4294967296x 5_0 ٥"
    ).split(" "):
        field = b"Content-Length: " + value.encode() + b"\r\n"
        site.refused(f"length {value!r}", b"POST / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\nhello")
    for field in [
        "Content-Length:",
        "Content-Length: ",
        "Content-Length: 5, 5",
        "Content-Length: 5, 6",
        "Content-Length: 5 5",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 6\r\ncontent-length: 5",
        "Content-Length : 5",
        "Content-Length\t: 5",
        " Content-Length: 5",
        "Content-Length\r\n: 5",
        "Content-Length:\r\n 5",
        "Content-Length: 5\r\n 0",
        "Content_Length: 5",
        "Content-Length 5",
        "Content-Length",
        "Content Length: 5",
        "Content-Length\x00: 5",
        "X: y\nContent-Length: 5",
        "X: y\rContent-Length: 5",
    ]:
        site.refused(repr(field), post(field, body=b"hello"))


@table.group
def obfuscated_encodings(site):
    # FAULTS 82
    body = b"5\r\nhello\r\n0\r\n\r\n"
    for field in [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunkedx",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding:\tchunked",
        "Transfer-Encoding:\x0bchunked",
        "Transfer-Encoding:\x0cchunked",
        "Transfer-Encoding:  chunked",
        "Transfer-Encoding: chunked ",
        "Transfer-Encoding: \x00chunked",
        "Transfer-Encoding: chunked\x00",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: y\nTransfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "Transfer-Encoding\n: chunked",
        "Transfer-Encoding:\n chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunked\r\n , identity",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-encoding: cow",
        "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: 'chunked'",
        "Transfer-Encoding: Chunked",
        "Transfer-Encoding: CHUNKED",
        "tRANSFER-eNCODING: cHuNkEd",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: deflate",
        "Transfer-Encoding:",
        "Transfer-Encoding: \xa0chunked",
        "Transfer-Encoding: chunked\xa0",
        "Transfer-Encoding: ch\xfcnked",
        "Transfer_Encoding: chunked",
        "Transfer Encoding: chunked",
        "Transfer-Encoding chunked",
        "Transfer-Encoding",
        "\x00Transfer-Encoding: chunked",
        "Transfer-Encoding\x00: chunked",
        "(Transfer-Encoding: chunked",
    ]:
        site.refused(repr(field), post(field, body=body))
        with_length = post(field, "Content-Length: 15", body=body + SMUGGLED)
        site.refused(f"{field!r} with a length", with_length)
    for fields in [(CHUNKED,), (CHUNKED, "Content-Length: 15"), ("Connection: keep-alive", CHUNKED)]:
        old = get("/", *fields, method="POST", version="HTTP/1.0") + body
        site.refused(f"HTTP/1.0 {fields}", old)
    answers = site.passes("the plain form", post(CHUNKED, body=body))
    site.check(answers.statuses == [200], "the plain form", answers)
    site.check(site.app.requests[0]["body"] == b"hello", "the plain form", site.app.requests)


@table.group
def fields_and_line_ends(site):
    # FAULTS 84
    for what, request in [
        ("bare line feeds", b"GET / HTTP/1.1\nHost: a\n\n"),
        ("bare line feed in the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
        ("bare line feed behind a field", b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
        ("bare line feed at the end", b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
        ("bare line feed before the end", b"GET / HTTP/1.1\r\nHost: a\n\r\n"),
        ("bare line feed before the request", b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("bare carriage returns", b"GET / HTTP/1.1\rHost: a\r\r"),
        ("bare carriage return in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n"),
        ("bare carriage return at a value's end", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n"),
        ("carriage return in a name", b"GET / HTTP/1.1\r\nHost: a\r\nX\rY: z\r\n\r\n"),
        ("carriage return in the target", b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("space before the colon", b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n"),
        ("space in a name", b"GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n"),
        ("no colon", b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"),
        ("no name", b"GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n"),
        ("a fold", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n"),
        ("a fold by tab", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n"),
        ("a fold first", b"GET / HTTP/1.1\r\n Host: a\r\nHost: b\r\n\r\n"),
        ("a folded empty line", b"GET / HTTP/1.1\r\nHost: a\r\n \r\n\r\n"),
        ("a folded host", b"GET / HTTP/1.1\r\nHost:\r\n a\r\n\r\n"),
        ("NUL in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n"),
        ("NUL in a name", b"GET / HTTP/1.1\r\nHost: a\r\nX\0: y\r\n\r\n"),
        ("NUL in the target", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("NUL in the host", b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n"),
        ("escape in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: \x1b[0m\r\n\r\n"),
        ("delete in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n"),
        ("separators in a name", b"GET / HTTP/1.1\r\nHost: a\r\nX(y): z\r\n\r\n"),
        ("above ASCII in a name", b"GET / HTTP/1.1\r\nHost: a\r\nX\xe9: z\r\n\r\n"),
        ("above ASCII in the target", b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("two spaces", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a tab", b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a space in the target", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a space behind the version", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
        ("a space before the method", b" GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a fragment", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("no version", b"GET /\r\nHost: a\r\n\r\n"),
        ("lower-case version", b"GET / http/1.1\r\nHost: a\r\n\r\n"),
        ("no target", b"GET HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("no method", b"/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("brackets in a method", b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("nothing that is HTTP", b"\x16\x03\x01\x00\x05hello\r\n\r\n"),
    ]:
        site.refused(what, request)
        site.refused(f"{what}, second", get() + request, before=1)
        pieces = [request[:9], request[9:-1], request[-1:]]
        site.refused(f"{what}, in pieces", *pieces, pause=0.02)
    site.refused("HTTP/0.9", b"GET /\r\n")
    site.refused("a line that is none", b"hello\r\n")
    for version in ["HTTP/1.2", "HTTP/2.0", "HTTP/3.0", "HTTP/0.9", "HTTP/1", "HTTP/1.10"]:
        site.refused(version, get(version=version), status=[400, 505])
    answers = site.passes("above ASCII in a value", get("/", "X: caf\xe9"))
    site.check(answers.statuses == [200], "above ASCII in a value", answers)
    for what, request in [
        ("an empty line before", b"\r\n" + get()),
        ("a value without space", b"GET / HTTP/1.1\r\nHost:a\r\nX:y\r\n\r\n"),
        ("a value in spaces", b"GET / HTTP/1.1\r\nHost: \t a \t \r\nX: \t\r\n\r\n"),
        ("no value", b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n"),
    ]:
        site.check(site.passes(what, request).statuses == [200], what, "refused")
        byte_by_byte = [bytes([byte]) for byte in request]
        site.passes(f"{what}, byte by byte", *byte_by_byte, pause=0.002)


@table.group
def chunks(site):
    # FAULTS 85
    for what, body in [
        ("0x", b"0x5\r\nhello\r\n0\r\n\r\n"),
        ("0X", b"0X5\r\nhello\r\n0\r\n\r\n"),
        ("plus", b"+5\r\nhello\r\n0\r\n\r\n"),
        ("minus", b"-5\r\nhello\r\n0\r\n\r\n"),
        ("minus zero", b"5\r\nhello\r\n-0\r\n\r\n"),
        ("space before", b" 5\r\nhello\r\n0\r\n\r\n"),
        ("space behind", b"5 \r\nhello\r\n0\r\n\r\n"),
        ("space before the extension", b"5 ;a=b\r\nhello\r\n0\r\n\r\n"),
        ("tab", b"5\t\r\nhello\r\n0\r\n\r\n"),
        ("underscore", b"1_0\r\nhello\r\n0\r\n\r\n"),
        ("not hexadecimal", b"g\r\nhello\r\n0\r\n\r\n"),
        ("no size", b"\r\nhello\r\n0\r\n\r\n"),
        ("only an extension", b";a\r\nhello\r\n0\r\n\r\n"),
        ("overflow of 64 bits", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("overflow of all", b"f" * 40 + b"\r\nhello\r\n0\r\n\r\n"),
        ("the largest", b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("many zeros", b"0" * 30 + b"5\r\nhello\r\n0\r\n\r\n"),
        ("bare line feed", b"5\nhello\r\n0\r\n\r\n"),
        ("bare line feed behind the data", b"5\r\nhello\n0\r\n\r\n"),
        ("bare carriage return", b"5\rhello\r\n0\r\n\r\n"),
        ("bare line feed in the extension", b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("bare carriage return in the extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
        ("NUL in the extension", b"5;a\0\r\nhello\r\n0\r\n\r\n"),
        ("NUL in the size", b"5\0\r\nhello\r\n0\r\n\r\n"),
        ("a huge extension", b"5;" + b"a" * 20_000 + b"\r\nhello\r\n0\r\n\r\n"),
        ("data too long", b"5\r\nhello!\r\n0\r\n\r\n"),
        ("data too short", b"6\r\nhello\r\n0\r\n\r\n"),
        ("no line end behind the data", b"5\r\nhello0\r\n\r\n"),
        ("bare line feed at the end", b"5\r\nhello\r\n0\r\n\n"),
        ("bare line feeds at the end", b"5\r\nhello\r\n0\n\n"),
        ("a bad trailer", b"5\r\nhello\r\n0\r\nX\r\n\r\n"),
        ("a folded trailer", b"5\r\nhello\r\n0\r\nX: y\r\n z\r\n\r\n"),
        ("a trailer with NUL", b"5\r\nhello\r\n0\r\nX: \0\r\n\r\n"),
    ]:
        site.refused(what, post(CHUNKED, body=body + SMUGGLED))
        broken_off(site, what, post(CHUNKED), body)
    for what, body, whole in [
        ("upper case", b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        ("a small extension", b"5;a=\"b c\";d\r\nhello\r\n0;e\r\n\r\n", b"hello"),
        ("a leading zero", b"05\r\nhello\r\n00\r\n\r\n", b"hello"),
        ("no data", b"0\r\n\r\n", b""),
    ]:
        site.passes(what, post(CHUNKED, body=body))
        site.check(site.app.requests[0]["body"] == whole, what, site.app.requests)
        byte_by_byte = [bytes([byte]) for byte in body]
        site.passes(what, post(CHUNKED), *byte_by_byte, pause=0.002)
        site.check(site.app.requests[0]["body"] == whole, what, site.app.requests)


def broken_off(site, what, head, body):
    """The head is with the app when the body goes wrong: the app never sees a clean end."""
    site.app.reset()
    end = site.proxy.connect()
    with end:
        end.sendall(head)
        site.app.wait(lambda app: app.requests)
        answers = exchange(end, [body], None, (), 0)
    site.check(answers.statuses in ([], [400]), f"{what}, late", "answers", answers)
    site.check(answers.ended in ("closed", "cut", "ConnectionResetError"), f"{what}, late", answers)
    was_cut = site.app.wait(lambda app: app.cut == 1)
    site.check(was_cut, f"{what}, late", "the app saw a clean end", site.app.requests)
    site.check(len(site.app.heads()) == 1, f"{what}, late", "the app saw", site.app.heads())
    site.works(f"{what}, late")


@table.group
def trailers(site):
    # FAULTS 86, 114
    chunk = b"5\r\nhello\r\n0\r\n"
    for name in [
        "Content-Length: 3",
        "Host: denied.example",
        "Transfer-Encoding: chunked",
        "X-Forwarded-Client-Cert: By=me",
        "x_forwarded_client_cert: By=me",
        "X-SPIFFE-ID: spiffe://example.org/admin",
        "X-Client-Identity: admin",
        "X-Postern-Anything: a",
        "Authorization: Bearer a",
        "Connection: close",
        "Te: trailers",
        "Trailer: x",
        "Cookie: a=b",
    ]:
        key = name.split(":")[0]
        for fields in [(CHUNKED,), (CHUNKED, f"Trailer: {key}"), (CHUNKED, f"Trailer: {key}", "TE: trailers")]:
            request = post(*fields, body=chunk + name.encode() + b"\r\n\r\n")
            answers = site.passes(f"{fields} {name}", request + get("/second"), count=2)
            site.check(answers.statuses == [200, 200], name, answers)
            site.check(site.app.requests[0]["body"] == b"hello", name, site.app.requests)
            seen = site.app.requests[0]["trailers"].lower()
            site.check(key.lower().encode() not in seen, name, "the app saw", seen)
    kept = post(CHUNKED, "Trailer: x-sum", "TE: trailers", body=chunk + b"X-Sum: 1\r\n\r\n")
    site.passes("a harmless trailer", kept)
    site.check(b"x-sum: 1" in site.app.requests[0]["trailers"], "a harmless trailer", site.app.requests)
    for what, lines in [
        ("one of 64 KB", b"X: " + b"a" * 65_536 + b"\r\n"),
        ("5,000", b"X: y\r\n" * 5_000),
        ("without end", b"X: y\r\n" * 100_000),
    ]:
        broken_off(site, f"trailers: {what}", post(CHUNKED), chunk + lines + b"\r\n")


@table.group
def too_much(site):
    # FAULTS 87
    plain = b"GET / HTTP/1.1\r\nHost: a\r\n"
    large = [400, 414, 431]
    for what, request in [
        ("a field of 256 KB", plain + b"X: " + b"a" * 262_144 + b"\r\n\r\n"),
        ("a field's name of 256 KB", plain + b"a" * 262_144 + b": b\r\n\r\n"),
        ("2,000 fields", plain + b"".join(b"x-%d: y\r\n" % n for n in range(2_000)) + b"\r\n"),
        ("2,000 times one field", plain + b"x: y\r\n" * 2_000 + b"\r\n"),
        ("129 fields", plain + b"x: y\r\n" * 128 + b"\r\n"),
        ("a target of 256 KB", b"GET /" + b"a" * 262_144 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a query of 256 KB", b"GET /?" + b"a" * 262_144 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a method of 256 KB", b"G" * 262_144 + b" / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a host of 256 KB", b"GET / HTTP/1.1\r\nHost: " + b"a" * 262_144 + b"\r\n\r\n"),
        ("fields of 1 MB without end", plain + b"x: y\r\n" * 170_000),
        ("a field of 1 MB without end", plain + b"X: " + b"a" * 1_000_000),
        ("a target of 1 MB without end", b"GET /" + b"a" * 1_000_000),
    ]:
        site.refused(what, request, status=large)
    site.refused("a target of 17 KB", get("/" + "a" * 17_000), status=414)
    site.refused("a head of 65 KB", get("/", *["X: " + "a" * 1_000] * 66), status=431)
    answers = site.passes("a target of 8 KB", get("/" + "a" * 8_000))
    site.check(answers.statuses == [200], "a target of 8 KB", answers)
    answers = site.passes("100 fields", get("/", *[f"X-{n}: y" for n in range(100)]))
    site.check(answers.statuses == [200], "100 fields", answers)
    answers = site.passes("a head of 40 KB", get("/", *["X: " + "a" * 1_000] * 40))
    site.check(answers.statuses == [200], "a head of 40 KB", answers)


@table.group
def targets_and_hosts(site):
    # FAULTS 88, 89, 112
    answers = site.passes("absolute form", get("http://web.example/a?b"))
    head = site.app.heads()[0]
    site.check(head.startswith(b"GET /a?b HTTP/1.1\r\n"), "absolute form", head)
    site.check(is_field(head, "host", "web.example"), "absolute form", head)
    site.passes("absolute form of https", get("https://WEB.example:443", host="web.example:443"))
    # The target counts; what the field says is neither judged nor told. Spec: RFC 9112 section 3.2.2.
    for what, request, host in [
        ("another host in the target", get("http://other.example/"), "other.example"),
        ("the denied host in the field", get("http://web.example/", host="denied.example"), "web.example"),
        ("another port in the target", get("http://web.example:81/"), "web.example:81"),
    ]:
        answers = site.passes(what, request)
        site.check(answers.statuses == [200], what, answers)
        head = site.app.heads()[0]
        site.check(is_field(head, "host", host) and b"denied" not in head, what, head)
    denied(site, "the denied host in the target", get("http://denied.example/"))
    for what, request in [
        ("no Host at all", b"GET http://web.example/ HTTP/1.1\r\n\r\n"),
        ("userinfo", get("http://a@web.example/")),
        ("another scheme", get("ftp://web.example/")),
        ("a scheme of scripts", get("javascript:alert(1)")),
        ("no host in it", get("http:///a")),
        ("authority form", get("web.example:80")),
        ("a relative path", get("a")),
        ("an asterisk", get("*")),
        ("an asterisk of OPTIONS", get("*", method="OPTIONS")),
        ("an escape at the beginning", get("%2f")),
    ]:
        site.refused(what, request)
    for what, request in [
        ("no Host", b"GET / HTTP/1.1\r\n\r\n"),
        ("no Host of HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n"),
        ("two Hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("the same Host twice", b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"),
    ]:
        site.refused(what, request)
    for host in [
        "", " ", "a b", "a/b", "a/", "/a", "a@b", "user:pass@a", "a?b", "a#b", "a\\b", "http://a", "a,b",
        "a, b", "a:b", "a:99999", "a:80:80", "a:-1", "a:0", "a..b", ".a", "[::1", "::1", "[x]", "[::1]x",
        "a%00", "a%2fb", "a\tb", "a;b", "a\"b", "<a>", "a" * 300, "a:80/", "caf\xe9", "a:+80", "*",
    ]:
        site.refused(f"host {host!r}", get(host=host))
    for host, sent in [
        ("WEB.Example", "web.example"), ("web.example.", "web.example"), ("web.example:8080", "web.example:8080"),
        ("127.0.0.1:80", "127.0.0.1:80"), ("[::1]:80", "[::1]:80"), ("web_1.example", "web_1.example"),
    ]:
        site.passes(f"host {host!r}", get(host=host))
        heads = site.app.heads()
        site.check(heads and is_field(heads[0], "host", sent), f"host {host!r}", heads)
    for host in ["denied.example", "DENIED.example", "denied.example.", "Denied.Example.", "denied.EXAMPLE"]:
        denied(site, f"host {host!r}", get(host=host))
        denied(site, f"target {host!r}", get(f"http://{host}/", host=host))


def denied(site, what, *pieces, before=0):
    """The policies say no; the connection may go on."""
    site.app.reset()
    answers = site.proxy.say(*pieces, wait_for=before + 1)
    site.check(answers.statuses == [200] * before + [403], what, "answers", answers)
    site.check(len(site.app.heads()) == before, what, "the app saw", site.app.heads())


@table.group
def methods(site):
    # FAULTS 90, 110
    refused = [400, 403, 405, 501]
    for what, request in [
        ("CONNECT", b"CONNECT web.example:80 HTTP/1.1\r\nHost: web.example:80\r\n\r\n"),
        ("CONNECT to elsewhere", b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("CONNECT with a path", get("/", method="CONNECT")),
        ("CONNECT in absolute form", get("http://web.example/", method="CONNECT")),
        ("connect", b"connect web.example:80 HTTP/1.1\r\nHost: web.example:80\r\n\r\n"),
        ("TRACE", get(method="TRACE")),
        ("TRACE with Max-Forwards", get("/", "Max-Forwards: 0", method="TRACE")),
        ("trace", get(method="trace")),
        ("GET *", get("*")),
        ("unknown", get(method="FOO")),
        ("PRI", b"PRI * HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("TRACK", get(method="TRACK")),
        ("DEBUG", get(method="DEBUG")),
        ("get", get(method="get")),
        ("Get", get(method="Get")),
        ("GETX", get(method="GETX")),
        ("delete", get(method="delete")),
        ("a quoted one", get(method='"GET"')),
        ("digits", get(method="123")),
    ]:
        site.refused(what, request, status=refused)
        site.refused(f"{what}, with another behind", request + get(), status=refused)
    # No tunnel: what follows a refused CONNECT is never sent on.
    for field in [
        "X-HTTP-Method-Override: GET",
        "X-HTTP-Method: GET",
        "X-Method-Override: GET",
        "X-Original-Method: GET",
        "X-Forwarded-Method: GET",
    ]:
        denied(site, f"DELETE with {field}", get("/", field, method="DELETE"))
        denied(site, f"DELETE with {field}, in the query", get("/?_method=GET", field, method="DELETE"))
    for field in ["X-Original-URL: /", "X-Rewrite-URL: /", "X-Forwarded-Path: /", "X-Forwarded-Host: web.example"]:
        denied(site, f"a denied path with {field}", get("/denied", field))
    for method in ["GET", "POST", "PUT", "PATCH", "OPTIONS", "HEAD", "PROPFIND"]:
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" if method == "HEAD" else OK
        answers = site.passes(method, get(method=method), methods=[method], answer=answer)
        site.check(answers.statuses == [200], method, answers)
        site.check(site.app.heads()[0].startswith(method.encode() + b" / "), method, site.app.heads())


@table.group
def denied_paths(site):
    # FAULTS 108
    for path in [
        "/denied", "/denied/", "/denied/x", "//denied", "/./denied", "/a/../denied", "/%64enied", "/d%65nied",
        "/%2e/denied", "/a/%2e%2e/denied", "/a/.%2e/denied", "/a/%2E./denied", "/denied?x", "/denied%20", "/denied;x",
        "/denied/.", "/denied/../denied", "/a/b/../../denied", "/denied%3fx", "/%64%65%6e%69%65%64", "/denied%00",
        "/a%2f..%2fdenied", "/\\denied", "/..\\denied", "/%5cdenied", "/a/..%5cdenied", "/..;/denied", "/;/denied", "/a/..;/denied", "/a/..%3b/denied", "/a/..;x=1/denied",
        "/%252e/denied", "/%25%36%34enied", "///denied", "/a//../denied", "/a//../../denied", "/../denied",
        "/.;/denied", "/denied#", "/%2fdenied", "/denied%2f", "/denied%5c", "/DENIED/../denied", "/%uff0edenied",
        "/d\u00e9nied".encode().decode("latin-1"), "/denied%", "/denied%zz",
    ]:
        site.app.reset()
        answers = site.proxy.say(get(path), wait_for=1)
        heads = site.app.heads()
        if heads:
            # What the app sees is truly another path, whatever an app undoes once.
            seen = heads[0].split(b" ")[1].decode().split("?")[0]
            site.check(answers.statuses == [200], path, answers)
            site.check(not unquote(seen).startswith("/denied"), path, "the app saw", seen)
            site.check("/../" not in unquote(seen) and "/./" not in unquote(seen), path, "the app saw", seen)
        else:
            site.check(answers.statuses in ([400], [403]), path, answers)


@table.group
def upgrades(site):
    # FAULTS 91
    switched = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: %s\r\n\r\n"
    for fields in [
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        ("Connection: Upgrade", "Upgrade: h2c"),
        ("Connection: Upgrade", "Upgrade: H2C"),
        ("Connection: Upgrade", "Upgrade: websocket, h2c"),
        ("Connection: Upgrade", "Upgrade: foo/2"),
        ("Connection: Upgrade", "Upgrade: TLS/1.0"),
        ("Connection: Upgrade", "Upgrade:"),
        ("Upgrade: h2c",),
        ("Upgrade: websocket",),
        ("Connection: keep-alive", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: a"),
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: a"),
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 777", "Sec-WebSocket-Key: a"),
    ]:
        answers = site.passes(f"{fields}", get("/", *fields))
        site.check(answers.statuses == [200], f"{fields}", answers)
        head = site.app.heads()[0]
        for name in ["upgrade", "connection", "http2-settings"]:
            site.check(not is_field(head, name), f"{fields}", f"`{name}` was forwarded", head)
        # The next request on the connection is a request.
        site.passes(f"{fields}, then another", get("/", *fields), get("/second"), count=2)
        denied(site, f"{fields}, then a denied one", get("/", *fields), get("/denied"), before=1)
        # What comes with the offer, before anybody could have taken it up, could be anything.
        site.refused(f"{fields}, at once another", get("/", *fields) + get("/denied"))
        # An app that switches all the same gets nothing.
        for name in [b"h2c", b"websocket", b"foo"]:
            site.app.reset(switched % name)
            answers = site.proxy.say(get("/", *fields), wait_for=1)
            site.check(answers.statuses == [502], f"{fields}", "unasked 101", answers)
    # 200 is no tunnel, whatever was asked.
    answers = site.passes("200 to a websocket", get("/", *WEBSOCKET), get("/second"), count=2)
    site.check(answers.statuses == [200, 200], "200 to a websocket", answers)
    denied(site, "200 to a websocket, then a denied one", get("/", *WEBSOCKET), get("/denied"), before=1)


WEBSOCKET = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\n"


def echo(end, reader, request):
    """Switches, and says everything twice."""
    end.sendall(SWITCHED + b"first")
    while reader.bytes or reader.more():
        end.sendall(reader.bytes * 2)
        reader.bytes = b""
    return False


@table.group
def websocket(site):
    # FAULTS 91
    site.app.reset(echo)
    with site.proxy.connect() as end:
        answers = exchange(end, [get("/", *WEBSOCKET)], 1, (), 0)
        site.check(answers.statuses == [101], "websocket", answers)
        fields = answers.all[0][1]
        site.check(fields.get(b"upgrade") == [b"websocket"], "websocket", fields)
        site.check(fields.get(b"connection") == [b"upgrade"], "websocket", fields)
        head = site.app.heads()[0]
        for name in ["upgrade", "connection", "sec-websocket-key", "x-forwarded-client-cert"]:
            site.check(is_field(head, name), "websocket", f"no `{name}`", head)
        seen = answers.tunnel
        while seen != b"first":
            seen += end.recv(100)
        # Not HTTP, and passed as it is.
        end.sendall(b"\x81\x00\n\0GET")
        seen = b""
        while len(seen) < 14:
            seen += end.recv(100)
        site.check(seen == b"\x81\x00\n\0GET" * 2, "websocket", seen)
        finish(end)
    site.app.reset(echo)
    answers = site.proxy.say(get("/denied", *WEBSOCKET), wait_for=1)
    site.check(answers.statuses == [403] and not site.app.heads(), "a denied websocket", answers)
    site.refused("frames before the answer", get("/", *WEBSOCKET) + b"\x81\x00")
    site.refused("a websocket of HTTP/1.1 with a body", get("/", *WEBSOCKET, "Content-Length: x"))
    for what, answer in [
        ("another protocol", SWITCHED.replace(b"websocket", b"h2c")),
        ("no protocol", b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    ]:
        site.app.reset(answer)
        answers = site.proxy.say(get("/", *WEBSOCKET), wait_for=1)
        site.check(answers.statuses == [502], what, answers)


@table.group
def websocket_cut(site):
    # FAULTS 91: the connection may not go on, and what it carries neither. Changes the policies.
    over = threading.Event()

    def echo_and_tell(end, reader, asked):
        try:
            return echo(end, reader, asked)
        finally:
            over.set()

    site.app.reset(echo_and_tell)
    file = Path(site.proxy.certificate).parent / "policies/policies.yaml"
    allowed = file.read_text()
    with site.proxy.connect() as end:
        answers = exchange(end, [get("/", *WEBSOCKET)], 1, (), 0)
        seen = answers.tunnel
        while seen != b"first":
            seen += end.recv(100)
        new = file.with_suffix(".new")
        new.write_text(allowed.replace("ingress: [{}]", "ingress: []"))
        new.rename(file)
        answers = exchange(end, [], None, (), 0)
        site.check(answers.ended in ("closed", "cut", "ConnectionResetError"), "the caller", answers)
        site.check(over.wait(20), "the app", "is still connected")
    file.write_text(allowed)


@table.group
def no_websocket(site):
    # FAULTS 91: with `upgrades: []`. The app switches whatever it is asked.
    site.app.reset(SWITCHED)
    answers = site.proxy.say(get("/", *WEBSOCKET), wait_for=1)
    site.check(answers.statuses == [502], "no websocket", answers)
    site.check(not is_field(site.app.heads()[0], "upgrade"), "no websocket", site.app.heads())


@table.group
def pipelines(site):
    # FAULTS 92
    site.passes("two", get("/1") + get("/2"), count=2)
    site.passes("a thousand", b"".join(get(f"/{n}") for n in range(1_000)), count=1_000)
    site.passes("ten", b"".join(get(f"/{n}") for n in range(10)), count=10)
    paths = [head.split(b" ")[1] for head in site.app.heads()]
    site.check(paths[:10] == [b"/%d" % n for n in range(10)], "ten", "the order", paths)
    denied(site, "the second denied", get("/1") + get("/denied"), before=1)
    site.app.reset()
    answers = site.proxy.say(get("/1") + get("/denied") + get("/3"), wait_for=3)
    site.check(answers.statuses == [200, 403, 200], "the second of three denied", answers)
    paths = [head.split(b" ")[1] for head in site.app.heads()]
    site.check(paths == [b"/1", b"/3"], "the second of three denied", paths)
    body = b"5\r\nhello\r\n0\r\n\r\n"
    for what, request in [
        ("GET with a body", get("/", "Content-Length: 5") + b"hello"),
        ("GET with chunks", get("/", CHUNKED) + body),
        ("HEAD with a body", get("/", "Content-Length: 5", method="HEAD") + b"hello"),
        ("OPTIONS with chunks", get("/", CHUNKED, method="OPTIONS") + body),
        ("POST", post("Content-Length: 5", body=b"hello")),
        ("a body that looks like a request", post(f"Content-Length: {len(SMUGGLED)}", body=SMUGGLED)),
    ]:
        names = [request.split(b" ")[0].decode(), "GET"]
        answer = OK[:-2] if names[0] == "HEAD" else OK
        if names[0] == "HEAD":
            site.passes(what, request, methods=names, answer=answer)
        else:
            answers = site.passes(what, request + get("/second"), count=2, methods=names)
            site.check(answers.statuses == [200, 200], what, answers)
        bodies = [one["body"] for one in site.app.requests]
        site.check(bodies and bodies[0] in (b"hello", SMUGGLED), what, "the body", site.app.requests)
    site.app.reset()
    denied_body = b"POST /denied HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
    answers = site.proxy.say(denied_body + get("/2"), wait_for=2)
    site.check(answers.statuses[:1] == [403], "a denied one with a body", answers)
    site.check(site.app.heads() in ([], [site.app.heads() and site.app.heads()[0]]), "a denied one", "")
    answers = site.proxy.say(get("/", "Connection: close") + get("/2"))
    site.check(answers.statuses == [200] and answers.ended == "closed", "close", answers)
    answers = site.proxy.say(get("/", version="HTTP/1.0") + get("/2"))
    site.check(answers.statuses == [200] and answers.ended == "closed", "HTTP/1.0", answers)
    # Refused in the middle: what is before is answered, what is behind never read.
    site.refused("bad in the middle", get("/1") + b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n" + get("/3"), before=1)


@table.group
def expectations(site):
    # FAULTS 93
    head = post("Content-Length: 5", "Expect: 100-continue")
    site.passes("told to go on", head, b"hello", pause=0.1)
    site.check(site.app.requests[0]["body"] == b"hello", "told to go on", site.app.requests)
    site.passes("not waited", head + b"hello" + get("/2"), count=2)
    site.check(site.app.requests[0]["body"] == b"hello", "not waited", site.app.requests)
    chunks = post(CHUNKED, "Expect: 100-continue")
    site.passes("chunks", chunks, b"5\r\nhello\r\n0\r\n\r\n", pause=0.1)
    site.check(site.app.requests[0]["body"] == b"hello", "chunks", site.app.requests)

    def slow(end, reader, request):
        time.sleep(0.5)
        end.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        request["body"], _ = body_of(parse_fields(request["head"]), reader)
        end.sendall(OK)
        return True

    answers = site.passes("a slow app", head, b"hello", get("/2"), count=2, answer=slow)
    site.check(answers.statuses == [200, 200], "a slow app", answers)
    site.check(site.app.requests[0]["body"] == b"hello", "a slow app", site.app.requests)

    def refusing(end, reader, request):
        end.sendall(b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
        return False

    site.app.reset(refusing)
    answers = site.proxy.say(head, wait_for=1)
    site.check(answers.statuses in ([417], [502]), "a refusing app", answers)
    site.app.reset()
    site.works("a refusing app")
    for value in ["200-ok", "100-continue, x", "x", ""]:
        site.refused(f"expect {value!r}", post(f"Expect: {value}", "Content-Length: 5", body=b"hello"), status=417)
    denied(site, "a denied path", get("/denied", "Expect: 100-continue", "Content-Length: 5", method="POST"))
    for what, answer, method in [
        ("204", b"HTTP/1.1 204 No Content\r\n\r\n", "GET"),
        ("204 with a length", b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", "GET"),
        ("304", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\netag: a\r\n\r\n", "GET"),
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", "HEAD"),
        ("HEAD with chunks", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "HEAD"),
        ("100 first", b"HTTP/1.1 100 Continue\r\n\r\n" + OK, "GET"),
        ("103 first", b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + OK, "GET"),
    ]:
        requests = [get(f"/{n}", method=method) for n in range(3)]
        answers = site.passes(what, *requests, count=3, methods=[method] * 3, answer=answer)
        site.check(len(set(answers.statuses)) == 1, what, answers)
    # A body where there can be none belongs to nobody.
    for status in ["204 No Content", "304 Not Modified"]:
        evil = f"HTTP/1.1 {status}\r\n\r\n".encode() + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
        site.app.reset(evil)
        answers = site.proxy.say(get("/1"), get("/2"), wait_for=2, pause=0.2)
        site.check(b"evil" not in answers.data, f"a body behind {status}", answers)
    site.app.reset(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
    answers = site.proxy.say(get("/1", method="HEAD"), get("/2", method="HEAD"), wait_for=2, methods=["HEAD"] * 2, pause=0.2)
    site.check(b"evil" not in answers.data, "a body behind HEAD", answers)


@table.group
def short_bodies(site):
    # FAULTS 94
    for what, head, part in [
        ("a length", post("Content-Length: 10"), b"hello"),
        ("a chunk", post(CHUNKED), b"a\r\nhello"),
        ("a chunk's size", post(CHUNKED), b"5\r\nhello\r\n5"),
        ("the last chunk", post(CHUNKED), b"5\r\nhello\r\n"),
        ("the end of the trailers", post(CHUNKED), b"5\r\nhello\r\n0\r\nX: y\r\n"),
        ("the last line end", post(CHUNKED), b"5\r\nhello\r\n0\r\n"),
    ]:
        for at_once in (True, False):
            site.app.reset()
            end = site.proxy.connect()
            with end:
                end.sendall(head + part if at_once else head)
                site.app.wait(lambda app: app.requests)
                if not at_once:
                    end.sendall(part)
                finish(end)
            was_cut = site.app.wait(lambda app: app.cut == 1)
            site.check(was_cut, f"short of {what}", "a clean end", site.app.requests)
            site.works(f"short of {what}")


@table.group
def slow_callers(site):
    # FAULTS 94: the deadlines of heads and bodies, all at once.
    waits = []

    def wait(what, *pieces, last=None, reaches=False):
        end = site.proxy.connect()

        def run():
            answers = exchange(end, pieces, None, (), 0.5)
            site.check(answers.ended not in ("silent", "open"), what, answers)
            site.check(200 not in answers.statuses, what, answers)

        thread = threading.Thread(target=run)
        thread.start()
        waits.append(thread)

    site.app.reset()
    wait("a head that stops", b"GET / HTTP/1.1\r\nHost: a\r\n")
    wait("a head that drips", *[bytes([byte]) for byte in b"GET / HTTP/1.1\r\nHost: a" + b"a" * 100])
    wait("nothing at all", b"")
    wait("empty lines", *[b"\r\n"] * 60)
    wait("a body that stops", post("Content-Length: 10", body=b"hello"))
    wait("a body that never begins", post("Content-Length: 10"))
    wait("chunks that stop", post(CHUNKED, body=b"5\r\nhello\r\n"))
    for thread in waits:
        thread.join()
    site.check(site.app.wait(lambda app: app.cut >= 3), "bodies", "not cut", site.app.cut)
    site.app.reset()
    site.works("slow callers")


@table.group
def no_reader(site):
    # FAULTS 94, 129: with limits of a second. A caller that does not read ends; so does what it asked.
    over = threading.Event()

    def endless(end, reader, asked):
        try:
            end.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
            while True:
                end.sendall(b"x" * 65_536)
        finally:
            over.set()

    site.app.reset(endless)
    before = site.memory()
    with site.proxy.connect() as end:
        end.sendall(get("/endless"))
        site.check(over.wait(20), "a caller that does not read", "the app still sends")
        grown = site.memory() - before
        site.check(grown < 32, "a caller that does not read", f"grew by {grown:.0f} MiB")
    site.works("a caller that does not read")


@table.group
def bad_answers(site):
    # FAULTS 95
    chunks = b"transfer-encoding: chunked\r\n\r\n5\r\nevil!\r\n0\r\n\r\n"
    for what, answer in [
        ("two lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 5\r\n\r\nevil!"),
        ("one length twice", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nevil!"),
        ("a list of lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 5, 6\r\n\r\nevil!"),
        ("length and encoding", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n" + chunks),
        ("encoding and length", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n5\r\nevil!\r\n0\r\n\r\n"),
        ("another encoding", b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nevil!"),
        ("encodings", b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n5\r\nevil!\r\n0\r\n\r\n"),
        ("a negative length", b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nevil!"),
        ("a length with a sign", b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nevil!"),
        ("a length in hexadecimal", b"HTTP/1.1 200 OK\r\ncontent-length: 0x5\r\n\r\nevil!"),
        ("an empty length", b"HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\nevil!"),
        ("NUL", b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 5\r\n\r\nevil!"),
        ("NUL in a name", b"HTTP/1.1 200 OK\r\nx\0: b\r\ncontent-length: 5\r\n\r\nevil!"),
        ("a bare carriage return", b"HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 5\r\n\r\nevil!"),
        ("a fold", b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 5\r\n\r\nevil!"),
        ("space before the colon", b"HTTP/1.1 200 OK\r\ncontent-length : 5\r\n\r\nevil!"),
        ("no colon", b"HTTP/1.1 200 OK\r\nx\r\ncontent-length: 5\r\n\r\nevil!"),
        ("101", b"HTTP/1.1 101 Switching Protocols\r\n\r\nevil!"),
        ("a huge field", b"HTTP/1.1 200 OK\r\nx: " + b"a" * 300_000 + b"\r\ncontent-length: 5\r\n\r\nevil!"),
        ("2,000 fields", b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 2_000 + b"content-length: 5\r\n\r\nevil!"),
        ("not HTTP", b"evil!\r\n\r\n"),
        ("another version", b"HTTP/2.0 200 OK\r\ncontent-length: 5\r\n\r\nevil!"),
        ("HTTP/1.0 with chunks", b"HTTP/1.0 200 OK\r\n" + chunks),
        ("a status of two digits", b"HTTP/1.1 20 OK\r\ncontent-length: 5\r\n\r\nevil!"),
        ("a status of letters", b"HTTP/1.1 abc OK\r\ncontent-length: 5\r\n\r\nevil!"),
        ("status 0", b"HTTP/1.1 000 OK\r\ncontent-length: 5\r\n\r\nevil!"),
        ("200 without end", b"HTTP/1.1 100 Continue\r\n\r\n" * 20 + b"evil!\r\n\r\n"),
    ]:
        site.app.reset(answer)
        answers = site.proxy.say(get("/1"), wait_for=1)
        site.check(answers.statuses == [502], what, answers)
        site.check(b"evil" not in answers.data, what, answers)
        site.app.reset()
        site.works(what)

    def nothing(end, reader, request):
        return False

    site.app.reset(nothing)
    answers = site.proxy.say(get("/1"), wait_for=1)
    site.check(answers.statuses == [502], "no answer", answers)

    # Cut in the middle: never a clean end.
    for what, part in [
        ("a length", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello"),
        ("chunks", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        ("a chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n64\r\nhello"),
        ("a bad chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"),
        ("a chunk too long", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n"),
    ]:

        def cut(end, reader, request, part=part):
            end.sendall(part)
            return False

        site.app.reset(cut)
        answers = site.proxy.say(get("/1"))
        site.check(answers.statuses in ([200], [502], []), f"cut in {what}", answers)
        site.check(answers.torn or answers.statuses != [200], f"cut in {what}", "a clean end", answers)
        site.app.reset()
        site.works(f"cut in {what}")

    # An extra answer is nobody's.
    for what, extra in [
        ("at once", [OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"]),
        ("later", [OK, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"]),
        ("garbage", [OK + b"evil"]),
        ("half", [OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"]),
    ]:

        def twice(end, reader, request, extra=extra):
            for piece in extra:
                end.sendall(piece)
                time.sleep(0.1)
            return True

        site.app.reset(twice)
        for number in range(3):
            answers = site.proxy.say(get("/1"), wait_for=1)
            site.check(answers.statuses == [200] and b"evil" not in answers.data, f"extra {what}", answers)
            time.sleep(0.2)
    site.app.reset()
    site.works("extra answers")


@table.group
def fields_of_one_connection(site):
    # FAULTS 111, 114, 115
    for field in [
        "X-Forwarded-Client-Cert: By=forged;URI=spiffe://example.org/admin",
        "x-forwarded-client-cert: forged",
        "X-FORWARDED-CLIENT-CERT: forged",
        "X_Forwarded_Client_Cert: forged",
        "x-forwarded_client-cert: forged",
        "X-Forwarded-Client-Cert: forged\r\nX-Forwarded-Client-Cert: forged",
        "X-SPIFFE-ID: forged",
        "x_spiffe_id: forged",
        "X-Client-Identity: forged",
        "X_CLIENT_IDENTITY: forged",
        "X-Postern-Reason: forged",
        "x-postern_anything: forged",
        "X_Postern-Peer: forged",
        "Connection: x-forwarded-client-cert",
        "Connection: close, X-Forwarded-Client-Cert",
        "Connection: keep-alive\r\nConnection: x-forwarded-client-cert, x-request-id, host",
        "Connection: host, content-length, x-request-id",
        "Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nConnection: x-gone\r\nX-Gone: forged",
    ]:
        site.passes(repr(field), get("/", field))
        for head in site.app.heads()[:1]:
            fields = parse_fields(head)
            site.check(b"forged" not in head, repr(field), "the app saw", head)
            own = fields.get(b"x-forwarded-client-cert", [])
            site.check(len(own) == 1 and b"URI=spiffe://example.org/workload/frontend" in own[0], repr(field), head)
            site.check(b"connection" not in fields and b"keep-alive" not in fields, repr(field), head)
            site.check(b"host" in fields and b"x-request-id" in fields, repr(field), head)
    body = post("Content-Length: 5", "Connection: content-length", body=b"hello")
    site.passes("the length named away", body)
    site.check(site.app.requests[0]["body"] == b"hello", "the length named away", site.app.requests)
    for fields in [
        ("X-Deny: yes",),
        ("x-deny: yes",),
        ("X-DENY:yes",),
        ("X-Deny: no", "X-Deny: yes"),
        ("X-Deny: yes", "X-Deny: no"),
        ("X-Deny: ", "X-Deny: yes"),
        ("X-Deny: yes", "x-deny: yes"),
        ("X-Deny: no, yes",),
        ("X-Deny: yes,no",),
        ("X-Deny: ,yes",),
        ("X-Deny: yes ,",),
        ("X-Deny: \tyes \t",),
        ("X-Deny: a, b, yes, c", "X-Deny: no"),
    ]:
        denied(site, f"{fields}", get("/", *fields))
    site.passes("another value", get("/", "X-Deny: no"))


@table.group
def detection(site):
    first_bytes(site, denies=True)


@table.group
def detection_where_all_is_allowed(site):
    first_bytes(site, denies=False)


def first_bytes(site, denies):
    # FAULTS 94, 114: what is spoken is found out by the first bytes, however they come.
    forged = ("X-Forwarded-Client-Cert: forged",)
    for what, pieces in [
        ("at once", [get("/", *forged)]),
        ("byte by byte", [bytes([byte]) for byte in get("/", *forged)]),
        ("two letters first", [b"GE", get("/", *forged)[2:]]),
        ("a method first", [b"GET ", get("/", *forged)[4:]]),
        ("an empty line first", [b"\r\n", get("/", *forged)]),
        ("late", [b"", get("/", *forged)]),
    ]:
        pause = 0.002 if len(pieces) > 2 else 0.6
        answers = site.passes(what, *pieces, alpn=None, pause=pause)
        site.check(answers.statuses == [200], what, answers)
        head = site.app.heads()[0] if site.app.heads() else b""
        site.check(b"forged" not in head and is_field(head, "x-forwarded-client-cert"), what, head)
        at_denied = [piece.replace(b"GET / ", b"GET /denied ").replace(b"T / ", b"T /denied ") for piece in pieces]
        if denies and len(pieces) <= 2 and what != "a method first":
            site.app.reset()
            answers = site.proxy.say(*at_denied, wait_for=1, alpn=None, pause=pause)
            site.check(answers.statuses == [403] and not site.app.heads(), f"{what}, denied", answers)
    for what, request in [
        ("lower case", get("/", *forged, method="get")),
        ("a space first", b" " + get("/", *forged)),
        ("spaces and lines first", b" \r\n\n " + get("/", *forged)),
        ("no version", b"GET /\r\n\r\n"),
        ("absolute form in lower case", get("http://web.example/", method="get")),
        ("a bad line end", b"GET / HTTP/1.1\nHost: a\n\n"),
        ("HTTP/1.1's form of HTTP/2", b"PRI * HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a tab for a space", get("/", *forged).replace(b"GET ", b"GET\t")),
        ("tabs for spaces", get("/", *forged).replace(b" ", b"\t")),
        ("a vertical tab for a space", get("/", *forged).replace(b"GET ", b"GET\x0b")),
        ("two spaces behind a method in lower case", get("/", *forged).replace(b"GET ", b"get  ")),
        ("a method with an underscore", get("/", *forged, method="A_B")),
        ("a method with a digit", get("/", *forged, method="GET1")),
        ("a long target behind a method in lower case", get("/" + "a" * 17_000, *forged, method="get")),
    ]:
        site.refused(what, request, status=[400, 414, 501], alpn=None)
    slowly = [b"get /", b" HTTP/1.1\r\n", get("/", *forged).partition(b"\r\n")[2]]
    site.refused("lower case, slowly", *slowly, status=[400, 501], alpn=None, pause=0.4)
    # However many empty lines there are before: what follows is a request, and is cleaned.
    answers = site.passes("20 empty lines before", b"\r\n" * 20 + get("/", *forged), alpn=None)
    site.check(answers.statuses == [200], "20 empty lines before", answers)
    site.check(all(b"forged" not in head for head in site.app.heads()), "20 empty lines before", site.app.heads())


@table.group
def server_first(site):
    # All is allowed here, opaque bytes too.
    site.app.greeting = b"220 hello\r\n"
    with site.proxy.connect(None) as end:
        seen = b""
        while len(seen) < 11:
            seen += end.recv(100)
        site.check(seen == b"220 hello\r\n", "the app speaks first", seen)
    site.app.greeting = b""
    site.app.reset(lambda end, reader, asked: end.sendall(b"pong"))
    for words in [b"12345\r\n\r\n", b"83 <34>1 x\r\n\r\n", b"say /hello\r\n\r\n", b"ping\r\n\r\n", b"get hello\r\n\r\n", b"get /key\r\n\r\n", b"\0\1\r\n\r\n"]:
        with site.proxy.connect(None) as end:
            end.sendall(words)
            site.check(end.recv(100) == b"pong", "opaque bytes", words)


@table.group
def idle(site):
    # With `idleTimeout: 1s`; all is allowed. Neither side begins, one stops, and one goes on.
    over = threading.Event()

    def count(end, reader, asked):
        end.sendall(b"pong")
        while end.recv(100):
            end.sendall(b"pong")
        over.set()
        return False

    site.app.reset(count)
    for what, words in [("nobody begins", b""), ("one word", b"ping\r\n\r\n")]:
        with site.proxy.connect(None) as end:
            end.sendall(words)
            seen = b""
            while more := end.recv(100):
                seen += more
            site.check(seen == (b"pong" if words else b""), what, seen)
    with site.proxy.connect(None) as end:
        for _ in range(6):
            end.sendall(b"ping\r\n\r\n")
            site.check(end.recv(100) == b"pong", "one that goes on", "is cut")
            time.sleep(0.4)
    site.check(over.wait(20), "the app", "is still connected")


FORGED = ("X-Forwarded-Client-Cert: forged",)


def opaque(site):
    """What is said to an app that answers `pong` to anything."""
    site.app.reset(lambda end, reader, asked: end.sendall(b"pong"))
    with site.proxy.connect(None) as end:
        end.sendall(b"ping\r\n\r\n")
        try:
            return end.recv(100)
        except OSError:
            return b""


@table.group
def declared_tcp(site):
    site.check(opaque(site) == b"pong", "opaque bytes", "refused")
    # Carried as it is, also where HTTP is offered in the handshake.
    for alpn in [None, "h2"]:
        site.app.reset()
        with site.proxy.connect(alpn) as end:
            site.check(end.selected_alpn_protocol() is None, alpn, end.selected_alpn_protocol())
            answers = exchange(end, [get("/", *FORGED)], 1, (), 0)
        site.check(answers.statuses == [200], alpn, answers)
        site.check(is_field(site.app.heads()[0], "x-forwarded-client-cert", "forged"), alpn, site.app.heads())


@table.group
def declared_http(site):
    site.check(opaque(site) == b"", "opaque bytes", "carried")
    site.check(not site.app.heads(), "opaque bytes", site.app.heads())
    answers = site.passes("a request", get("/", *FORGED), alpn=None)
    site.check(answers.statuses == [200], "a request", answers)
    site.check(not is_field(site.app.heads()[0], "x-forwarded-client-cert", "forged"), "a request", site.app.heads())


@table.group
def declared_http2(site):
    site.check(opaque(site) == b"", "opaque bytes", "carried")
    seen = []
    site.app.http2 = lambda end, first: seen.append(first)
    site.proxy.say(get("/"), wait_for=1)
    site.check(seen and seen[0].startswith(b"PRI * HTTP/2.0"), "the app", "is not asked over HTTP/2")


@table.group
def declared_nothing(site):
    site.check(opaque(site) == b"pong", "opaque bytes", "refused")
    answers = site.passes("a request", get("/", *FORGED), alpn=None)
    site.check(not is_field(site.app.heads()[0], "x-forwarded-client-cert", "forged"), "a request", answers)


if __name__ == "__main__":
    elsewhere = ("declared_tcp", "declared_http", "declared_http2", "declared_nothing", "idle", "no_reader", "no_websocket", "websocket_cut", "server_first", "detection_where_all_is_allowed")
    names = sys.argv[7:] or [name for name in table.groups if name not in elsewhere]
    table.run(Site(sys.argv[1:7]), names)
