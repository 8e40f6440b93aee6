"""Revert data in the words of our contracts."""

from __future__ import annotations

import pytest
from eth_abi.abi import encode

from emcd.chain.abi import ContractAbi, load_contract, parse_contract
from emcd.chain.revert import _known_errors, decode_revert
from emcd.chain.rpc import CallReverted, RpcRefused, error_from
from emcd.errors import RecoverableError
from emcd.testing import make_key


def test_decode_revert_error_text_is_read() -> None:
    reason = decode_revert(bytes.fromhex("08c379a0") + encode(["string"], ["no such node"]))
    assert (reason.name, reason.text) == ("Error", "no such node")


def test_decode_revert_panic_is_explained() -> None:
    reason = decode_revert(bytes.fromhex("4e487b71") + (0x11).to_bytes(32, "big"))
    assert (reason.name, reason.text) == ("Panic", "panic 0x11 (arithmetic overflow)")


def test_decode_revert_custom_error_has_its_name_and_arguments() -> None:
    errors = load_contract("Staking").errors
    selector = next(s for s, e in errors.items() if e.name == "BelowMinimum")
    reason = decode_revert(selector + encode(["uint256", "uint256"], [5, 3000]))
    assert (reason.name, reason.args) == ("BelowMinimum", {"amountWei": 5, "minimumWei": 3000})
    assert reason.text == "BelowMinimum(amountWei=5, minimumWei=3000)"


def test_decode_revert_known_selector_with_garbage_keeps_the_bytes() -> None:
    selector = next(s for s, e in load_contract("Staking").errors.items() if e.inputs)
    reason = decode_revert(selector + b"\x01", "execution reverted")
    assert (reason.name, reason.data, reason.text) == ("", selector + b"\x01", "execution reverted")


def test_decode_revert_empty_says_so() -> None:
    assert decode_revert(b"").text == "reverted without a reason"


def test_error_from_the_shapes_nodes_use_are_reverts() -> None:
    data = "0x08c379a0" + encode(["string"], ["x"]).hex()
    shapes = [
        {"code": 3, "message": "execution reverted", "data": data},
        {"code": -32000, "message": "VM Exception", "data": {"data": data}},
        {"code": -32015, "message": "VM execution error.", "data": "Reverted " + data},
    ]
    for shape in shapes:
        error = error_from("eth_call", shape)
        assert isinstance(error, CallReverted), shape
        assert error.reason.text == "x"


def test_error_from_limits_are_tried_elsewhere_and_refusals_are_not() -> None:
    assert isinstance(error_from("eth_getBalance", {"code": -32005, "message": "limit"}), RecoverableError)
    assert isinstance(error_from("eth_getLogs", {"code": -32005, "message": "limit"}), RpcRefused)
    assert isinstance(error_from("eth_x", "boom"), RecoverableError)
    refused = error_from("eth_sendRawTransaction", {"code": -32000, "message": "nonce too low"})
    assert isinstance(refused, RpcRefused)
    assert refused.message == "nonce too low"


def test_call_reverted_names_the_contracts_error() -> None:
    address = make_key("node").address
    selector = next(s for s, e in load_contract("Staking").errors.items() if e.name == "NotBound")
    error = error_from(
        "eth_call",
        {"code": 3, "message": "", "data": "0x" + (selector + encode(["address"], [address])).hex()},
    )
    assert isinstance(error, CallReverted)
    assert error.code == "EMC-1504"
    assert error.reason.args == {"node": address}


def test_decode_revert_selector_that_contracts_share_gets_no_wrong_argument_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two contracts declare the same error and name its second argument differently."""

    def error(*names: str) -> ContractAbi:
        inputs = [{"name": name, "type": "uint256"} for name in names]
        return parse_contract("X", [{"type": "error", "name": "TooLate", "inputs": inputs}])

    contracts = {
        "one": error("now", "until"),
        "two": error("now", "deadline"),
        "three": error("now", "until"),
    }
    monkeypatch.setattr("emcd.chain.revert.CONTRACT_NAMES", tuple(contracts))
    monkeypatch.setattr("emcd.chain.revert.load_contract", contracts.__getitem__)
    _known_errors.cache_clear()
    try:
        selector = next(iter(contracts["one"].errors))
        reason = decode_revert(selector + encode(["uint256", "uint256"], [5, 7]))
    finally:
        _known_errors.cache_clear()
    assert (reason.name, reason.args) == ("TooLate", {"now": 5, "1": 7})
    assert reason.text == "TooLate(now=5, 1=7)"
