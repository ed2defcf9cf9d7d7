"""What parses what strangers send keeps its promises for any input."""

import json

import bridge_promises as promises
from hypothesis import example, given
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
META = st.fixed_dictionaries(
    {},
    optional={"_meta": st.fixed_dictionaries({}, optional={"progressToken": JSON, "x": JSON}), "name": JSON},
)
MEMBERS = st.fixed_dictionaries(
    {"jsonrpc": st.sampled_from(["2.0", "2.0", "1.0"])},
    optional={
        "id": JSON,
        "method": st.sampled_from(["tools/call", "x"]) | JSON,
        "params": META | JSON,
        "result": JSON,
        "error": JSON,
        "x": JSON,
    },
)
MESSAGES = st.builds(
    lambda value, indent, ascii_only: json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(errors="replace"),
    MEMBERS, st.sampled_from([None, 1]), st.booleans(),
)  # fmt: skip


# covers: untrusted-bytes
@given(st.binary() | MESSAGES)
@example(b'{"jsonrpc":"2.0","id":1e1000,"method":"m"}')
@example(b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"progressToken":-0}}}')
def test_messages(data: bytes) -> None:
    promises.message(data)


# covers: untrusted-bytes
@given(st.binary() | st.text().map(lambda text: f"=?base64?{text}?=".encode()))
@example(b"=?base64?\x80?=")
@example(b"=?base64?YQ?=")
@example(b"=?base64?YR==?=")
@example(b"=?base64?=")
def test_encoded_headers(data: bytes) -> None:
    promises.header(data)


LINES = st.sampled_from(
    [
        b"mcp-method: tools/call", b"mcp-name: t", b"mcp-name: =?base64?dA==?=", b"mcp-protocol-version: 2026-07-28",
        b"mcp-param-x: 1", b"mcp-param-n: 42.0", b"host: [::1", b"accept: */*", b"mcp-param-n: x",
    ]
)  # fmt: skip
CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {
        "name": "t",
        "arguments": {"x": "1", "n": 42},
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    },
}


# covers: untrusted-bytes
@given(
    st.lists(LINES | st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")), max_size=8).map(
        b"\n".join
    ),
    st.just(json.dumps(CALL).encode()) | MESSAGES,
)
def test_headers_that_are_taken_agree_with_the_body(head: bytes, body: bytes) -> None:
    promises.headers(head + b"\n\n" + body)


# covers: untrusted-bytes
@given(st.lists(st.binary(max_size=20) | MESSAGES).map(b"\n".join))
def test_messages_of_a_child_are_events(data: bytes) -> None:
    promises.events(data)
