"""The contracts' interfaces, held against web3's own encoding."""

from __future__ import annotations

import pytest

from emcd.chain.abi import DecodeError, Param, load_contract, parse_contract
from emcd.chain.contracts import CONTRACT_NAMES
from emcd.errors import LocalProtocolError
from emcd.proto.hashing import keccak
from emcd.testing import make_key

NODE, WALLET = make_key("node").address, make_key("wallet").address


def test_encode_known_call_has_the_selector_and_words() -> None:
    data = load_contract("EMCToken").functions["transfer"].encode((WALLET, 7))
    assert data[:4].hex() == "a9059cbb"
    assert data[4:] == bytes(12) + bytes.fromhex(WALLET[2:]) + (7).to_bytes(32, "big")


def test_encode_tuple_argument_uses_the_components() -> None:
    function = load_contract("Staking").functions["bind"]
    assert function.selector == keccak(b"bind((address,address,uint8,uint256,uint256),bytes)")[:4]
    function.encode(((NODE, WALLET, 1, 1, 2), b"s" * 65))


@pytest.mark.parametrize("args", [(WALLET,), (WALLET, -1), (WALLET, 2**256), ("0x12", 1), (WALLET, "7")])
def test_encode_wrong_argument_raises(args: tuple[object, ...]) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        load_contract("EMCToken").functions["transfer"].encode(args)
    assert caught.value.code == "EMC-1508"


def test_decode_addresses_are_checksummed_and_tuples_are_dicts() -> None:
    function = load_contract("Distributor").functions["published"]
    assert [p.type for p in function.outputs] == [
        "(uint8,bytes32,bytes32,uint256,uint64,address,uint256,bool)"
    ]
    words = [1, 2, 3, 4, 5, int(WALLET, 16), 7, 1]
    (value,) = function.decode(b"".join(word.to_bytes(32, "big") for word in words))
    assert value["publisher"] == WALLET
    assert (value["state"], value["cumulativeWei"], value["feePaid"]) == (1, 4, True)
    assert value["root"] == (3).to_bytes(32, "big")


@pytest.mark.parametrize("data", [b"", b"\x00" * 31, b"\xff" * 32])
def test_decode_short_or_impossible_bytes_raises(data: bytes) -> None:
    with pytest.raises(DecodeError):
        load_contract("Distributor").functions["published"].decode(data)


def test_decode_event_reads_topics_and_data() -> None:
    event = load_contract("Staking").event("Bound")
    topics = [event.topic, _word(NODE), _word(WALLET), (3).to_bytes(32, "big")]
    assert event.decode(topics, (9).to_bytes(32, "big")) == {
        "node": NODE,
        "wallet": WALLET,
        "role": 3,
        "nonce": 9,
    }


def test_decode_event_with_a_topic_missing_raises() -> None:
    event = load_contract("Staking").event("Bound")
    with pytest.raises(DecodeError):
        event.decode([event.topic, _word(NODE)], bytes(32))


def test_decode_event_indexed_text_stays_its_hash() -> None:
    abi = [
        {"type": "event", "name": "Named", "inputs": [{"name": "text", "type": "string", "indexed": True}]}
    ]
    event = parse_contract("T", abi).event("Named")
    assert event.decode([event.topic, bytes(32)], b"") == {"text": bytes(32)}


def test_parse_overloaded_function_is_found_by_signature_only() -> None:
    abi = [
        {"type": "function", "name": "f", "inputs": [{"name": "", "type": kind}], "outputs": []}
        for kind in ("uint256", "address")
    ]
    functions = parse_contract("T", abi).functions
    assert set(functions) == {"f(uint256)", "f(address)"}


def test_parse_nested_tuple_array_builds_the_canonical_type() -> None:
    inner = [{"name": "a", "type": "uint8"}]
    abi = [
        {
            "type": "function",
            "name": "f",
            "inputs": [{"type": "tuple[2][]", "components": inner}],
            "outputs": [],
        }
    ]
    assert parse_contract("T", abi).functions["f"].inputs == (
        Param("", "(uint8)[2][]", components=(Param("a", "uint8"),)),
    )


@pytest.mark.parametrize("name", CONTRACT_NAMES)
def test_load_contract_every_artifact_is_indexed(name: str) -> None:
    contract = load_contract(name)
    assert contract.bytecode
    assert contract.functions
    assert contract.errors


def _word(address: str) -> bytes:
    return bytes(12) + bytes.fromhex(address[2:])
