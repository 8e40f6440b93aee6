"""What the hub answers when it can't do what was asked: one exception, OpenAI's shape."""

from __future__ import annotations

from emcd.errors import EmcdError
from emcd.proto.openai import RequestError, error_body

INVALID = "invalid_request_error"
SERVER = "server_error"


class ApiError(EmcdError):
    """A refusal with the status, type and code that OpenAI's clients know.

    Args:
        code: ours, EMC-17xx; kind, openai_code: theirs ("type" and "code" of the body).
        is_final: the same request will get the same answer, though its status is one of those after
            which OpenAI's clients try again: they are told not to.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        status: int,
        *,
        kind: str = INVALID,
        openai_code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        is_final: bool = False,
    ) -> None:
        super().__init__(code, detail)
        self.is_final = is_final
        self.status = status
        self.kind = kind
        self.openai_code = openai_code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> bytes:
        return error_body(
            self.code,
            f"{self.detail} ({self.code})",
            type=self.kind,
            code=self.openai_code,
            param=self.param,
        )

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(self.retry_after_s).encode()))
        if self.is_final:
            headers.append((b"x-should-retry", b"false"))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


def from_request_error(exc: RequestError) -> ApiError:
    return ApiError(exc.code, exc.detail, exc.status, param=exc.param, openai_code="invalid_request")


def bad_key() -> ApiError:
    """The first words are OpenAI's: by them LiteLLM tells a wrong key from a wrong request."""
    detail = "Incorrect API key provided: it is missing or not valid"
    return ApiError("EMC-1703", detail, 401, openai_code="invalid_api_key")


def too_many_failures(retry_after_s: int) -> ApiError:
    return ApiError(
        "EMC-1704", "too many requests with a wrong key from this address", 429,
        kind="requests", openai_code="rate_limit_exceeded", retry_after_s=retry_after_s,
    )  # fmt: skip


def no_credit() -> ApiError:
    return ApiError(
        "EMC-1705", "the account has not enough credits for this call", 429,
        kind="insufficient_quota", openai_code="insufficient_quota", is_final=True,
    )  # fmt: skip


def too_many_calls(retry_after_s: int) -> ApiError:
    return ApiError(
        "EMC-1706", "the account has too many calls in flight", 429,
        kind="requests", openai_code="rate_limit_exceeded", retry_after_s=retry_after_s,
    )  # fmt: skip


def unknown_model(model: str) -> ApiError:
    return ApiError(
        "EMC-1707",
        f"no node serves the model {model[:80]!r} here",
        404,
        openai_code="model_not_found",
        param="model",
    )


def delisted_model(model: str) -> ApiError:
    return ApiError(
        "EMC-1794",
        f"the model {model[:80]!r} was delisted: its answers can't be verified as they should be",
        404,
        openai_code="model_not_found",
        param="model",
    )


def no_node(detail: str, retry_after_s: int) -> ApiError:
    return ApiError(
        "EMC-1708", detail, 503, kind=SERVER, openai_code="service_unavailable", retry_after_s=retry_after_s
    )


def no_price(ceiling_micro: int, least_micro: int) -> ApiError:
    return ApiError(
        "EMC-1766",
        f"no node does it for {show_credits(ceiling_micro)} credits per million tokens;"
        f" the least is {show_credits(least_micro)}",
        404, openai_code="no_matching_node", param="provider.max_price",
    )  # fmt: skip


def no_quantization(wanted: str, there: list[str]) -> ApiError:
    return ApiError(
        "EMC-1767",
        f"no node serves the model as {wanted!r}; what is said of it: {', '.join(there) or 'nothing'}",
        404, openai_code="no_matching_node", param="provider.quantization",
    )  # fmt: skip


def overloaded(detail: str, retry_after_s: int) -> ApiError:
    """Busy: the same request may be served a little later."""
    return ApiError(
        "EMC-1709", detail, 429, kind="requests", openai_code="overloaded", retry_after_s=retry_after_s
    )


def closed(detail: str, retry_after_s: int) -> ApiError:
    """The hub takes no calls at all for now."""
    return ApiError(
        "EMC-1765", detail, 503, kind=SERVER, openai_code="service_unavailable", retry_after_s=retry_after_s
    )


def too_large(max_bytes: int) -> ApiError:
    return ApiError(
        "EMC-1715", f"the body is larger than {max_bytes} bytes", 413, openai_code="request_too_large"
    )


def answer_gone(call_id: str) -> ApiError:
    return ApiError(
        "EMC-1717", f"this idempotency key was served as {call_id}; its answer is not kept", 409,
        openai_code="idempotent_answer_gone", is_final=True,
    )  # fmt: skip


def key_reused() -> ApiError:
    return ApiError(
        "EMC-1718", "this idempotency key was used for another request", 422,
        openai_code="idempotency_key_reused", param="idempotency-key",
    )  # fmt: skip


def key_in_use() -> ApiError:
    return ApiError(
        "EMC-1719", "a request with this idempotency key is still at work", 409,
        kind="requests", openai_code="idempotency_key_in_use", retry_after_s=1,
    )  # fmt: skip


def node_failed(detail: str) -> ApiError:
    return ApiError("EMC-1710", detail, 502, kind=SERVER, openai_code="upstream_error", retry_after_s=1)


def not_found(path: str) -> ApiError:
    return ApiError("EMC-1711", f"there is nothing at {path[:200]!r}", 404, openai_code="not_found")


def wrong_method(method: str) -> ApiError:
    return ApiError("EMC-1712", f"{method} is not served here", 405, openai_code="method_not_allowed")


def show_credits(micro: int) -> str:
    return f"{micro // 1_000_000}.{micro % 1_000_000:06d}"
