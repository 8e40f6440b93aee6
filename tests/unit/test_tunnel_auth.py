"""The tunnel's handshake: every way to be somebody else is refused, with its own number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from emcd.errors import LocalProtocolError, RemoteProtocolError
from emcd.keys import SigningKey
from emcd.proto.eip712 import Domain
from emcd.proto.messages import TunnelAuth
from emcd.proto.tunnel_auth import FRESH, SKEW_MS, VALID_MS, HubHandshake, NodeHandshake, Resume
from emcd.types import ParticipantRole as Role

HUB, NODE, OTHER = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3))
DOMAIN = Domain(31337, HUB.address)
NOW = 1_800_000_000_000
COMPUTE = frozenset({Role.COMPUTE})
NAME = bytes(range(16))
AGAIN = Resume(NAME, 3, 7)
N1, N2, N3 = (bytes([n]) * 32 for n in (11, 12, 13))


def hub_side(key: SigningKey = HUB, domain: Domain = DOMAIN, nonce: bytes = N1) -> HubHandshake:
    return HubHandshake(key, domain, nonce)


def node_side(
    key: Any = NODE,
    domain: Domain = DOMAIN,
    nonce: bytes = N2,
    role: Role = Role.COMPUTE,
    hub: Any = HUB.address,
    resume: Resume = FRESH,
) -> NodeHandshake:
    return NodeHandshake(key, domain, nonce, role, hub, resume)


def proof(node: NodeHandshake | None = None, hub: HubHandshake | None = None, now_ms: int = NOW) -> list[Any]:
    message = (node or node_side()).prove((hub or hub_side()).hello(), now_ms)
    return msgspec.msgpack.decode(message)  # type: ignore[no-any-return]


def check(fields: list[Any], now_ms: int = NOW, roles: frozenset[Role] = COMPUTE) -> Any:
    hub = hub_side()
    hub.hello()
    return hub.check(msgspec.msgpack.encode(fields), now_ms, roles)


def test_handshake_of_the_right_keys_proves_both() -> None:
    hub, node = hub_side(), node_side()
    message = node.prove(hub.hello(), NOW)
    assert hub.check(message, NOW + 500, COMPUTE) == (NODE.address, Role.COMPUTE)
    assert hub.resume == FRESH
    assert node.check(hub.welcome(NOW + 500, NAME), NOW + 900) == HUB.address
    assert (node.session, node.received) == (NAME, 0)


def test_handshake_without_a_pin_proves_whoever_answers() -> None:
    hub, node = hub_side(key=OTHER), node_side(hub=None)
    hub.check(node.prove(hub.hello(), NOW), NOW, COMPUTE)
    assert node.check(hub.welcome(NOW, NAME), NOW) == OTHER.address


class Signer:
    """Claims one address and signs with the key of another, or with what a test says."""

    def __init__(self, address: Any, sign: Callable[[Domain, TunnelAuth], bytes]) -> None:
        self.address = address
        self.sign: Any = sign


@pytest.mark.parametrize(
    "sign",
    [
        OTHER.sign,
        lambda domain, struct: b"",
        lambda domain, struct: bytes(65),
        lambda domain, struct: NODE.sign(domain, struct)[:-1],
        lambda domain, struct: NODE.sign(domain, struct) + b"\0",
        lambda domain, struct: NODE.sign(domain, struct)[:64] + b"\x00",
        lambda domain, struct: NODE.sign(Domain(1, domain.verifying_contract), struct),
        lambda domain, struct: NODE.sign(Domain(domain.chain_id, OTHER.address), struct),
        lambda domain, struct: NODE.sign(domain, msgspec.structs.replace(struct, receiver=OTHER.address)),
        lambda domain, struct: NODE.sign(domain, msgspec.structs.replace(struct, receiver_nonce=N3)),
        lambda domain, struct: NODE.sign(domain, msgspec.structs.replace(struct, sender_nonce=N3)),
        lambda domain, struct: NODE.sign(domain, msgspec.structs.replace(struct, role=2)),
        lambda domain, struct: NODE.sign(domain, msgspec.structs.replace(struct, expires_at_ms=NOW)),
        lambda domain, struct: NODE.sign(
            domain, msgspec.structs.replace(struct, sender=struct.receiver, receiver=struct.sender)
        ),
    ],
)
def test_hub_proof_with_a_wrong_signature_is_refused(sign: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1404"):
        check(proof(node_side(key=Signer(NODE.address, sign))))


def test_hub_proof_replayed_on_another_connection_is_refused() -> None:
    recorded = proof(hub=hub_side(nonce=N3))
    with pytest.raises(RemoteProtocolError, match="EMC-1404"):
        check(recorded)


def test_hub_proof_of_another_address_is_refused() -> None:
    fields = proof()
    fields[1] = OTHER.address
    with pytest.raises(RemoteProtocolError, match="EMC-1404"):
        check(fields)


def test_hub_proof_reflected_by_another_hub_is_refused() -> None:
    """A hub that forwards its own hello's answer to another hub proves nothing there."""
    relayed = node_side(hub=None).prove(hub_side(key=OTHER).hello(), NOW)
    with pytest.raises(RemoteProtocolError, match="EMC-1404"):
        check(msgspec.msgpack.decode(relayed))


@pytest.mark.parametrize("age_ms", [VALID_MS + SKEW_MS, VALID_MS + SKEW_MS + 1, 10**9])
def test_hub_proof_expired_is_refused(age_ms: int) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1405"):
        check(proof(), NOW + age_ms)


def test_hub_proof_valid_for_too_long_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1405"):
        check(proof(now_ms=NOW + SKEW_MS + 1))


def test_handshake_of_clocks_within_the_skew_passes() -> None:
    check(proof(now_ms=NOW + SKEW_MS))
    check(proof(), NOW + VALID_MS + SKEW_MS - 1)


@pytest.mark.parametrize("role", [Role.ROUTER, Role.VALIDATOR, Role.HUB])
def test_hub_proof_of_another_role_is_refused(role: Role) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1406"):
        check(proof(node_side(role=role)))


def test_hub_proof_of_another_role_that_is_wanted_passes() -> None:
    fields = proof(node_side(role=Role.ROUTER))
    assert check(fields, roles=frozenset({Role.ROUTER})) == (NODE.address, Role.ROUTER)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 1),
        (0, 3),
        (0, None),
        (1, NODE.address.lower()),
        (1, "0x00"),
        (1, 7),
        (2, "1"),
        (3, b""),
        (3, bytes(31)),
        (3, N1),
        (4, "soon"),
        (4, 1.5),
        (5, None),
        (5, "x" * 65),
        (6, NAME),
        (6, NAME[1:]),
        (6, None),
        (7, 1),
        (7, -1),
        (7, 2**63),
        (8, 1),
        (8, -1),
        (8, 2**63),
    ],
)
def test_hub_proof_malformed_is_refused(place: int, value: Any) -> None:
    fields = proof()
    fields[place] = value
    with pytest.raises(RemoteProtocolError, match="EMC-1402"):
        check(fields)


@pytest.mark.parametrize("value", [-1, 0, 256, 2**63, -(2**62)])
def test_hub_proof_of_a_role_that_is_none_is_refused(value: int) -> None:
    fields = proof()
    fields[2] = value
    with pytest.raises(RemoteProtocolError, match="EMC-1406"):
        check(fields)


@pytest.mark.parametrize("message", [b"", b"\xc0", b"\xff" * 10, bytes(2000), b"{}", b"\x96" + b"\xc0" * 6])
def test_hub_garbage_is_refused(message: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1402"):
        hub_side().check(message, NOW, COMPUTE)


def test_text_that_is_not_utf8_is_refused() -> None:
    hub = hub_side()
    hub.hello()
    message = msgspec.msgpack.encode(proof(hub=hub)).replace(NODE.address[-4:].encode(), b"\xff\xfe\xfd\xfc")
    with pytest.raises(RemoteProtocolError, match="EMC-1402"):
        hub.check(message, NOW, COMPUTE)
    with pytest.raises(RemoteProtocolError, match="EMC-1402"):
        node_side().prove(msgspec.msgpack.encode([2, "abc", N1]).replace(b"abc", b"\xff\xfe\xfd"), NOW)


def test_hub_extra_field_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1402"):
        check([*proof(), 1])


def test_node_signs_nothing_for_another_hub() -> None:
    signed: list[Any] = []
    signer = Signer(NODE.address, lambda domain, struct: signed.append(struct) or b"")  # type: ignore[func-returns-value]
    with pytest.raises(RemoteProtocolError, match="EMC-1403"):
        node_side(key=signer).prove(hub_side(key=OTHER).hello(), NOW)
    assert signed == []


@pytest.mark.parametrize(
    "fields", [[1, HUB.address, N1], [2, "hub", N1], [2, HUB.address, b""], [2, HUB.address, N2]]
)
def test_node_malformed_hello_is_refused(fields: list[Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1402"):
        node_side().prove(msgspec.msgpack.encode(fields), NOW)


def welcomed(sign: Any, now_ms: int = NOW) -> tuple[NodeHandshake, bytes]:
    """A node and the welcome of a hub that signs as the test says."""
    hub, node = HubHandshake(Signer(HUB.address, sign), DOMAIN, N1), node_side()
    hub.check(node.prove(hub.hello(), NOW), NOW, COMPUTE)
    return node, hub.welcome(now_ms, NAME)


@pytest.mark.parametrize(
    "sign",
    [
        OTHER.sign,
        NODE.sign,
        lambda domain, struct: b"",
        lambda domain, struct: HUB.sign(Domain(1, HUB.address), struct),
        lambda domain, struct: HUB.sign(domain, msgspec.structs.replace(struct, receiver=OTHER.address)),
        lambda domain, struct: HUB.sign(domain, msgspec.structs.replace(struct, receiver_nonce=N3)),
        lambda domain, struct: HUB.sign(domain, msgspec.structs.replace(struct, role=1)),
    ],
)
def test_node_welcome_with_a_wrong_signature_is_refused(sign: Any) -> None:
    node, welcome = welcomed(sign)
    with pytest.raises(RemoteProtocolError, match="EMC-1404"):
        node.check(welcome, NOW)


def test_node_welcome_expired_is_refused() -> None:
    node, welcome = welcomed(HUB.sign)
    with pytest.raises(RemoteProtocolError, match="EMC-1405"):
        node.check(welcome, NOW + VALID_MS + SKEW_MS)


def test_node_own_signature_reflected_is_no_welcome() -> None:
    node = node_side()
    fields = msgspec.msgpack.decode(node.prove(hub_side().hello(), NOW))
    with pytest.raises(RemoteProtocolError, match="EMC-1404"):
        node.check(msgspec.msgpack.encode([fields[4], fields[5], NAME, 0]), NOW)


def test_handshake_steps_out_of_order_are_our_fault() -> None:
    with pytest.raises(LocalProtocolError, match="EMC-1402"):
        hub_side().welcome(NOW, NAME)
    with pytest.raises(LocalProtocolError, match="EMC-1402"):
        node_side().check(b"", NOW)
    with pytest.raises(LocalProtocolError, match="EMC-1402"):
        hub_side(nonce=b"short")
    hub = hub_side()
    hub.check(node_side().prove(hub.hello(), NOW), NOW, COMPUTE)
    with pytest.raises(LocalProtocolError, match="EMC-1402"):
        hub.welcome(NOW, b"short")


def test_resume_is_proven_by_both_sides() -> None:
    hub, node = hub_side(), node_side(resume=AGAIN)
    assert hub.check(node.prove(hub.hello(), NOW), NOW, COMPUTE) == (NODE.address, Role.COMPUTE)
    assert hub.resume == AGAIN
    assert node.check(hub.welcome(NOW, NAME, 5), NOW) == HUB.address
    assert (node.session, node.received) == (NAME, 5)


@pytest.mark.parametrize(("place", "value"), [(6, NAME[::-1]), (7, 4), (7, 2), (8, 6), (8, 8)])
def test_resume_with_another_session_epoch_or_count_than_signed_is_refused(place: int, value: Any) -> None:
    fields = proof(node_side(resume=AGAIN))
    fields[place] = value
    with pytest.raises(RemoteProtocolError, match="EMC-1404"):
        check(fields)


def test_resume_taken_out_of_a_proof_or_put_in_is_refused() -> None:
    fields = proof(node_side(resume=AGAIN))
    with pytest.raises(RemoteProtocolError, match="EMC-1404"):
        check([*fields[:6], *FRESH])
    with pytest.raises(RemoteProtocolError, match="EMC-1404"):
        check([*proof()[:6], *AGAIN])


def test_resume_replayed_on_another_connection_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1404"):
        check(proof(node_side(resume=AGAIN), hub_side(nonce=N3)))


def test_resume_signed_by_another_key_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1404"):
        check(proof(node_side(key=Signer(NODE.address, OTHER.sign), resume=AGAIN)))


@pytest.mark.parametrize(("place", "value"), [(2, NAME[::-1]), (3, 6), (3, 0)])
def test_node_welcome_of_another_session_or_count_than_signed_is_refused(place: int, value: Any) -> None:
    hub, node = hub_side(), node_side(resume=AGAIN)
    hub.check(node.prove(hub.hello(), NOW), NOW, COMPUTE)
    fields = msgspec.msgpack.decode(hub.welcome(NOW, NAME, 5))
    fields[place] = value
    with pytest.raises(RemoteProtocolError, match="EMC-1404"):
        node.check(msgspec.msgpack.encode(fields), NOW)


@pytest.mark.parametrize(("place", "value"), [(2, b""), (2, NAME[1:]), (3, -1), (3, 2**63)])
def test_node_welcome_malformed_is_refused(place: int, value: Any) -> None:
    hub, node = hub_side(), node_side()
    hub.check(node.prove(hub.hello(), NOW), NOW, COMPUTE)
    fields = msgspec.msgpack.decode(hub.welcome(NOW, NAME))
    fields[place] = value
    with pytest.raises(RemoteProtocolError, match="EMC-1402"):
        node.check(msgspec.msgpack.encode(fields), NOW)


def test_node_welcome_to_another_session_than_it_resumes_is_refused() -> None:
    hub, node = hub_side(), node_side(resume=AGAIN)
    hub.check(node.prove(hub.hello(), NOW), NOW, COMPUTE)
    with pytest.raises(RemoteProtocolError, match="EMC-1416"):
        node.check(hub.welcome(NOW, NAME[::-1], 5), NOW)
