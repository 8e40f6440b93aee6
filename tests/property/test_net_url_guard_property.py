"""URLs: what is read is what a client would connect to, and any text is read or refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emcd.errors import ConfigError
from emcd.net.url_guard import is_loopback, parse_target, require_public

PIECES = st.sampled_from(
    ["http", "https", "://", "//", ":", "/", "@", "#", "?", "[", "]", "::1", "127.0.0.1", "."]
)
TEXT = st.lists(PIECES | st.text(max_size=6), max_size=12).map("".join)


@given(TEXT)
def test_parse_target_any_text_is_read_again_the_same_or_refused(text: str) -> None:
    try:
        target = parse_target(text)
    except ConfigError:
        return
    assert parse_target(target.origin + target.path) == target
    assert "@" not in target.origin


@given(st.ip_addresses())
def test_require_public_address_is_global_or_refused(address: object) -> None:
    host = f"[{address}]" if ":" in str(address) else str(address)
    try:
        target = require_public(f"https://{host}/")
    except ConfigError:
        return
    assert address.is_global  # type: ignore[attr-defined]
    assert not is_loopback(target.host)
