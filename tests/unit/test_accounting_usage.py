from __future__ import annotations

import pytest

from emcd.accounting.usage import Usage, read_usage

CHAT = b'{"id":"x","usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46}}'


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (CHAT, Usage(12, 34)),
        (b'{"usage":{"prompt_tokens":5,"total_tokens":5}}', Usage(5, 0)),
        (b'{"usage":{"prompt_tokens":5,"completion_tokens":null}}', Usage(5, 0)),
        (b'{"usage":{"input_tokens":3,"output_tokens":4,"total_tokens":7}}', Usage(3, 4)),
        (b'{"usage":{"input_tokens":3,"input_tokens_details":{"text_tokens":3}}}', Usage(3, 0)),
        (b'{"usage":{"type":"duration","seconds":9}}', None),
        (b'{"usage":{"output_tokens":4}}', None),
        (b'{"usage":{"input_tokens":-3}}', None),
        (b'{"usage":null}', None),
        (b'{"choices":[]}', None),
        (b'{"usage":{"prompt_tokens":-1}}', None),
        (b'{"usage":{"prompt_tokens":1.5}}', None),
        (b'{"usage":{"prompt_tokens":"1"}}', None),
        (b'{"usage":{"prompt_tokens":true}}', None),
        (b'{"usage":{"prompt_tokens":99999999999999999999999}}', None),
        (b'{"usage":{"prompt_tokens":18446744073709551615}}', None),
        (b'{"usage":{}}', None),
        (b"[1]", None),
        (b"", None),
        (b"\xff\xfe", None),
        (b'{"usage":' + b"[" * 100_000, None),
    ],
)
def test_read_usage_of_an_answer(body: bytes, usage: Usage | None) -> None:
    assert read_usage(body) == usage
