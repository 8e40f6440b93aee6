"""`emcd challenge`: have a node show the answer that it signed a receipt for.

Owns options and words; what counts is checked by the validators, and here once more.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec
import trio

from emcd.accounting.receipt import CallReceipt
from emcd.chain import Chain, ChainConfig
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError, EmcdError, RemoteProtocolError
from emcd.net.http_client import Response, request
from emcd.net.url_guard import is_loopback, parse_target, require_public
from emcd.proto.hashing import keccak
from emcd.proto.network import decode_deployment
from emcd.proto.openai import Endpoint
from emcd.proto.records import parse_call_id
from emcd_validator.page import MAX_ANSWER_BYTES
from emcd_validator.statement import read_receipt

TIMEOUT_S = 20.0
_POLL_S = 1.0
_PATHS = {"input": Endpoint.EMBEDDINGS, "messages": Endpoint.CHAT, "prompt": Endpoint.COMPLETIONS}


@click.command()
@click.argument("call")
@click.option(
    "--receipt",
    "receipt_file",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The receipt, as /v1/calls/CALL/receipt serves it.",
)
@click.option(
    "--request",
    "request_file",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The body of the call, as it was sent. It is shown to the validator, and kept nowhere.",
)
@click.option(
    "--path", default="", help="Where the call went, such as /v1/chat/completions. Default: by the body."
)
@click.option("--seed", type=int, help="The seed that the hub drew, where the body has none.")
@click.option(
    "--url", "urls", multiple=True, metavar="VALIDATOR", help="Validators to ask. Default: the chain's."
)
@click.option(
    "--wait", "wait_s", default=0.0, show_default=True, help="Seconds to wait for the node's answer."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the answer.")
@json_option
@pass_command_context
def challenge(
    context: CommandContext,
    call: str,
    receipt_file: Path,
    request_file: Path,
    path: str,
    seed: int | None,
    urls: tuple[str, ...],
    wait_s: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Challenge the receipt of CALL: its node has to show the answer that it signed.

    Who shows the request of a call may see its answer: nobody else is told either. A node that does not
    answer in time is known for it. Exit code 4: not opened (yet).
    """
    body, receipt = request_file.read_bytes(), read_receipt(receipt_file.read_bytes())
    if receipt.forward.call_id != parse_call_id(call) or receipt.receipt is None:
        raise RemoteProtocolError("EMC-1870", f"{receipt_file} is no node's receipt of {call}")
    page = {
        "receipt": msgspec.json.decode(receipt_file.read_bytes()),
        "path": path or _find_path(body),
        "request": b64encode(body).decode(),
        "seed": seed,
    }
    found = trio.run(_challenge, context, urls, page, wait_s)
    answer = _take_answer(found, receipt)
    if answer is not None and out is not None:
        out.write_bytes(answer)
    shown = {key: found.get(key) for key in ("call_id", "node", "state", "deadline_ms", "validator")}
    emit(shown, _tell(shown, answer, out), as_json)
    if answer is None:
        raise SystemExit(4)


async def _challenge(
    context: CommandContext, urls: tuple[str, ...], page: dict[str, Any], wait_s: float
) -> dict[str, Any]:
    endpoints = urls or await _list_validators(context)
    deadline = trio.current_time() + wait_s
    found = await _post_first(endpoints, page)
    while "response" not in found and trio.current_time() < deadline:
        await trio.sleep(_POLL_S)
        found = await _post_first([found["validator"]], page)
    return found


async def _post_first(endpoints: Iterable[str], page: dict[str, Any]) -> dict[str, Any]:
    """Bring it to the first validator that takes it. Raises: RemoteProtocolError EMC-1870 when none does."""
    refusals = []
    for endpoint in endpoints:
        try:
            answer = await request(
                "POST", f"{endpoint.rstrip('/')}/challenges", json=page, timeout_s=TIMEOUT_S,
                max_bytes=MAX_ANSWER_BYTES,
            )  # fmt: skip
        except EmcdError as exc:
            refusals.append(f"{endpoint}: {exc.code}: {exc.detail}")
            continue
        if answer.status in (200, 202):
            return {**_read_page(answer), "validator": endpoint}
        refusals.append(f"{endpoint}: {answer.body[:200].decode('utf-8', 'replace')}")
    raise RemoteProtocolError("EMC-1870", "; ".join(refusals) or "there is no validator to ask")


async def _list_validators(context: CommandContext) -> list[str]:
    config = context.load()
    path = config.network.deployment
    try:
        deployment = decode_deployment(path.read_bytes(), str(path))
    except OSError as exc:
        raise ConfigError("EMC-1006", f"{path}: {exc.strerror}") from exc
    if not config.chain.rpc_urls:
        raise ConfigError("EMC-1007", "give --url: without a chain no validator is known")
    chain = Chain(ChainConfig(config.chain.rpc_urls, confirmations=config.chain.confirmations), deployment)
    is_local = is_loopback(parse_target(config.chain.rpc_urls[0]).host)
    epoch = deployment.params.epoch_of(max(0, await chain.staking.fetch_current_round()))
    members = (await chain.staking.fetch_validator_set(epoch)).members
    found = [await chain.staking.find_participant(node) for node, _ in members]
    return [item.endpoint for item in found if item is not None and _is_askable(item.endpoint, is_local)]


def _is_askable(endpoint: str, is_local: bool) -> bool:
    try:
        if not (is_local and is_loopback(parse_target(endpoint).host)):
            require_public(endpoint)
    except ConfigError:
        return False
    return True


def _read_page(answer: Response) -> dict[str, Any]:
    page = answer.json()
    if not isinstance(page, dict):
        raise RemoteProtocolError("EMC-1870", f"{answer.url} answers no object")
    return page


def _find_path(body: bytes) -> str:
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1870", f"the request is no JSON object: {exc}") from exc
    found = [endpoint.value for name, endpoint in _PATHS.items() if name in fields]
    if len(found) != 1:
        raise click.UsageError("--path: the body does not say where it went")
    return found[0]


def _take_answer(found: dict[str, Any], receipt: CallReceipt) -> bytes | None:
    """The answer, when it is the one that the node signed. Raises: RemoteProtocolError EMC-1873."""
    if "response" not in found or receipt.receipt is None:
        return None
    answer = b64decode(str(found["response"]))
    if keccak(answer) != receipt.receipt.response_hash:
        raise RemoteProtocolError("EMC-1873", "the validator shows other bytes than the node signed")
    return answer


def _tell(shown: dict[str, Any], answer: bytes | None, out: Path | None) -> str:
    if answer is None:
        return f"{shown['call_id']}: {shown['state']}: node {shown['node']} has not shown its answer"
    where = f", written to {out}" if out is not None else ""
    return f"{shown['call_id']}: opened: node {shown['node']} showed the {len(answer)} bytes it signed{where}"
