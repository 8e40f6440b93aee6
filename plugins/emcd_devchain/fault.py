"""The faults a JSON-RPC caller is told, with Ethereum's usual codes. Standard library only."""

from __future__ import annotations

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
SERVER_ERROR = -32000
LIMIT_EXCEEDED = -32005
EXECUTION_REVERTED = 3


class RpcFault(Exception):
    """Becomes the `error` member of an answer."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class PoolRefused(RpcFault):
    """A transaction that the pool does not take; the sentences are those that go-ethereum uses."""

    def __init__(self, message: str) -> None:
        super().__init__(SERVER_ERROR, message)
