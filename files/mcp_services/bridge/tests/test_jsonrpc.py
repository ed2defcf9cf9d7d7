"""Messages are carried byte for byte, and what is no message is refused."""

import pytest

from gatehouse_bridge.jsonrpc import Message, MessageError, dump


def test_what_is_not_edited_stays_as_it_was() -> None:
    raw = rb'{"params":{"b":1.0e2,"a":123456789012345678901234567890,"s":"\ud800\u0041"} ,"id": 7, "jsonrpc":"2.0","method":"x"}'
    message = Message.parse(raw)
    assert message.edited({("id",): "99"}).encode() == raw.replace(b'"id": 7', b'"id": 99')


def test_edits_reach_down() -> None:
    message = Message.parse(
        b'{"jsonrpc":"2.0","id":"1","method":"m","params":{"_meta":{"progressToken":"1","k":1},"id":"1"}}'
    )
    assert message.edited(
        {("params", "_meta", "progressToken"): "5", ("id",): "6", ("params", "none"): "7"}
    ) == ('{"jsonrpc":"2.0","id":6,"method":"m","params":{"_meta":{"progressToken":5,"k":1},"id":"1"}}')


def test_it_becomes_one_line() -> None:
    message = Message.parse(b'{\r\n "jsonrpc": "2.0",\n "method": "a\\nb\xe2\x80\xa8"\r}\n')
    assert message.text == '{   "jsonrpc": "2.0",  "method": "a\\nb\u2028" }'
    assert message.method == "a\nb\u2028"


@pytest.mark.parametrize(
    ("raw", "identifier"),
    [
        (r'{"jsonrpc":"2.0","id":ID,"method":"m","params":{"id":8,"x":{"id":9}}}', "7"),
        (r'{"method":"m","params":{"id":8},"jsonrpc":"2.0","id":ID}', '"7"'),
        (r'{"method":"m","params":{"x":"\"id\":8"},"id" : ID ,"jsonrpc":"2.0"}', "7"),
        (r'{"method":"m","params":{"x":"y\"id"},"id":ID,"jsonrpc":"2.0"}', "7"),
        (r'{"method":"m","params":["id"],"jsonrpc":"2.0","id":ID}', '"id"'),
        (r'{"method":"m","params":["\u0069d"],"jsonrpc":"2.0","id":ID}', "-7"),
        (r'{"method":"m","jsonrpc":"2.0","\u0069d":ID}', "7"),
        (r'{"method":"m","jsonrpc":"2.0","id":ID}', r'"a\"b,c}"'),
        (r'{"method":"id","jsonrpc":"2.0","id":ID}', '" : ,}"'),
        (r'{"result":{"method":"m"},"jsonrpc":"2.0","id":ID}', "1000000000000000000000"),
        (r'{"jsonrpc":"2.0","extra":{"id":1},"id":ID,"error":{}}', "7"),
        # As SDKs write them.
        (r'{"jsonrpc":"2.0","id":ID,"method":"m","params":{"id":8}}', '"a}b"'),
        (r'{"jsonrpc": "2.0", "id": ID, "method": "m", "params": {"id": 8}}', "7"),
        (r'{"method":"m","params":{"id":8},"jsonrpc":"2.0","id":ID}', "0"),
        (r'{"jsonrpc":"2.0","id":ID,"result":{"id":8}}', "7"),
        (r'{"jsonrpc":"2.0","id":ID,"error":{"id":8}}', "7"),
        (r'{"result":{"id":8},"jsonrpc":"2.0","id":ID}', '""'),
        (r'{"result":null,"jsonrpc":"2.0","id":ID}', "7"),
    ],
)
def test_the_id_is_found_wherever_it_stands(raw: str, identifier: str) -> None:
    message = Message.parse(raw.replace("ID", identifier).encode())
    assert message.id == identifier
    assert message.with_id("99") == raw.replace("ID", "99")
    scanned = Message.scanned(message.text)
    for name in ("method", "params", "result", "id_value", "is_request", "is_response"):
        assert getattr(message, name) == getattr(scanned, name)


@pytest.mark.parametrize(
    "inner",
    [
        '"x":1,"x":2',
        '"_meta":{"progressToken":1,"x":1,"x":2}',
        r'"_meta":{},"\u005fmeta":{"progressToken":1}',
    ],
)
def test_what_has_two_readings_is_carried_and_not_changed(inner: str) -> None:
    message = Message.parse(f'{{"jsonrpc":"2.0","id":1,"method":"m","params":{{{inner}}}}}'.encode())
    assert message.with_id("2") == message.text.replace('"id":1', '"id":2')
    with pytest.raises(MessageError) as caught:
        message.edited({("id",): "2", ("params", "_meta", "progressToken"): "3"})
    assert caught.value.code == -32700


def test_what_cannot_be_written_is_refused() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (float("inf"), float("nan"), deep):
        with pytest.raises(MessageError):
            dump(value)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b'{"jsonrpc":"2.0","id":1,"method":"m"}', "request"),
        (b'{"jsonrpc":"2.0","id":"","method":"m","params":{}}', "request"),
        (b'{"jsonrpc":"2.0","method":"m"}', "notification"),
        (b'{"jsonrpc":"2.0","id":1,"result":null}', "response"),
        (b'{"jsonrpc":"2.0","id":null,"error":{"code":1}}', "response"),
    ],
)
def test_kinds(raw: bytes, kind: str) -> None:
    message = Message.parse(raw)
    assert (message.is_request, message.is_response) == (kind == "request", kind == "response")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b'{"jsonrpc"', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"m"} x', -32700),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"m"}', -32700),
        (rb'{"jsonrpc":"2.0","id":1,"\u0069d":2,"method":"m"}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","method":"n"}', -32700),
        (rb'{"jsonrpc":"2.0","id":1,"method":"m","meth\u006fd":"n"}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","x":1,"x":2}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":{},"id":1}', -32700),
        (b'{"method":"m","params":{},"jsonrpc":"2.0","id":1,"id":1}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"result":{},"jsonrpc":"2.0","id":1}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":{}}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"x":NaN}}', -32700),
        (b'{"jsonrpc":"2.0","id":01,"method":"m","params":{}}', -32700),
        (b'{"method":"m","params":{}}', -32600),
        (b'{"jsonrpc":"2.0","result":{}}', -32600),
        (b'{"result":{},"jsonrpc":"2.0"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":3}', -32600),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"m"}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"a\nb"}\xff', -32700),
        (b'{"jsonrpc":"2.0","params":' + b"[" * 100_000, -32700),
        (b"[" * 100_000, -32700),
        (b'{"jsonrpc":"2.0","id":' + b"1" * 10_000 + b"}", -32700),
        (b"42", -32700),
        (b'[{"jsonrpc":"2.0","method":"m"}]', -32600),
        (b"{}", -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"m"}', -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":"m"}', -32600),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"m"}', -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"m"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":3}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":"x"}', -32600),
        (b'{"jsonrpc":"2.0","id":1}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"result":1,"error":{}}', -32600),
    ],
)
def test_what_is_no_message_is_refused(raw: bytes, code: int) -> None:
    with pytest.raises(MessageError) as caught:
        Message.parse(raw)
    assert caught.value.code == code
