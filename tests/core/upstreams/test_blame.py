"""Whose fault it is: what a status and its words come to, and that every fault has a verdict."""

from __future__ import annotations

import json

import pytest

from tidegate.core.upstreams.blame import (
    FAULT_OF_CODE,
    FAULT_OF_STATUS,
    VERDICTS,
    Fault,
    Held,
    fault_of_answer,
)


def body(message: str = "no", **more: object) -> bytes:
    """An error as OpenAI writes it."""
    return json.dumps({"error": {"message": message, **more}}).encode()


def of(status: int, said: bytes, *, ours: bool = True, told: bool = False) -> Fault:
    return fault_of_answer(status, said, names_ours=ours, is_told=told)


def test_every_fault_has_a_verdict() -> None:
    """And everything that is known by a code or a status is one of them."""
    assert set(VERDICTS) == set(Fault)
    assert set(FAULT_OF_CODE.values()) | set(FAULT_OF_STATUS.values()) <= set(VERDICTS)


def test_what_a_verdict_says_fits_together() -> None:
    """A caller's mistake goes nowhere else, and who is asked once more is first passed by."""
    for verdict in VERDICTS.values():
        assert verdict.goes_on or verdict.held in {Held.ALIVE, Held.NOTHING}
        assert verdict.goes_on or not (verdict.once_more or verdict.is_ours)
        assert not verdict.is_ours or verdict.held is Held.ALIVE


def test_every_status_is_some_fault() -> None:
    """Whatever a server sends, with a reason, without one, and with the caller's own model."""
    for status in range(300, 1000):
        for said in (body(), b"<html>", b""):
            for ours in (True, False):
                assert of(status, said, ours=ours) in VERDICTS


@pytest.mark.parametrize(
    ("status", "said", "fault"),
    [
        (307, b"", Fault.MISLED),
        (400, body(), Fault.CALLER),
        (401, body(), Fault.OUR_KEY),
        (401, b"", Fault.OUR_KEY),
        (402, body("Insufficient credits"), Fault.OUR_KEY),
        (403, b"<html>error code: 1010</html>", Fault.OUR_KEY),
        (403, body("You have insufficient permissions", type="permission_error"), Fault.OUR_KEY),
        (403, body("Missing scopes: api.moderation.write"), Fault.OUR_KEY),
        (404, body(), Fault.OUR_MODEL),
        (405, b"", Fault.NO_ROUTE),
        (408, body(), Fault.BUSY),
        (413, body(), Fault.CALLER),
        (422, body(), Fault.CALLER),
        (429, body("the prompt is too long"), Fault.BUSY),
        (429, body(), Fault.BUSY),
        (500, body(), Fault.BROKEN),
        (500, body("image input is not supported", type="server_error"), Fault.BROKEN),
        (500, b'{"error":{"message":"half an emoji \\ud83d"}}', Fault.BROKEN),
        (500, b"<html>", Fault.CRASHED),
        (500, b"", Fault.CRASHED),
        (500, b'{"error":"\xff"}', Fault.CRASHED),
        (500, b"[" * 100_000, Fault.CRASHED),
        (501, body(), Fault.NO_ROUTE),
        *((status, body(), Fault.DOWN) for status in (502, 503, 504, 507, 520, 524, 529)),
        (508, body(), Fault.CALLER),
        (600, body(), Fault.GARBLED),
    ],
)
def test_a_status_by_itself(status: int, said: bytes, fault: Fault) -> None:
    """What it says where the words add nothing."""
    assert of(status, said) is fault


def flat(message: str, **more: object) -> bytes:
    """An error as vLLM and Mistral wrote it."""
    return json.dumps({"object": "error", "message": message, **more}).encode()


def typed(kind: str, message: str) -> bytes:
    """An error as Anthropic writes it."""
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


def said_by_ollama(message: str) -> bytes:
    return json.dumps({"error": message}).encode()


OPENAI_S = "This model's maximum context length is 8192 tokens. However, you requested 9000"
TOO_LONG = {
    "openai": (400, body(OPENAI_S, code="context_length_exceeded")),
    "anthropic": (400, typed("invalid_request_error", "prompt is too long: 9 tokens > 8 maximum")),
    "llama.cpp": (400, body("the request exceeds it", type="exceed_context_size_error")),
    "llama.cpp before": (400, body("the request exceeds the available context size")),
    "llama.cpp, embeddings": (500, body("too large to process. increase the physical batch size")),
    "vllm": (400, flat(OPENAI_S, type="BadRequestError", code=400)),
    "vllm, prompts": (400, body("The decoder prompt is longer than the maximum model length of 8")),
    "ollama": (400, said_by_ollama("the input length exceeds the context length")),
    "ollama, chat": (500, said_by_ollama("prompt too long; exceeded max context length by 7")),
    "google": (
        400,
        b'[{"error":{"message":"The input token count (9) exceeds the maximum number of tokens"}}]',
    ),
    "mistral": (400, flat("Prompt contains 9 tokens, too large for 8 maximum context length")),
    "groq": (413, body("Please reduce the length", code="context_length_exceeded")),
    "bedrock": (400, b'{"message":"Input is too long for requested model."}'),
    "lm studio": (400, body("The number of tokens to keep is greater than the context length")),
}


@pytest.mark.parametrize(("status", "said"), TOO_LONG.values(), ids=TOO_LONG)
def test_too_much_for_this_model_may_fit_another(status: int, said: bytes) -> None:
    """Recognised by code or wording, whatever the status, also as an error event."""
    assert of(status, said) is Fault.TOO_LONG
    assert of(400, said, told=True) is Fault.TOO_LONG
    assert of(502, said, told=True) is Fault.TOO_LONG


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (403, body("flagged", metadata={"reasons": ["x"], "flagged_input": "y"})),
        (403, body("Your input was flagged by moderation")),
        (403, b'{"code":"The caller does not have permission",'
         b'"error":"Content violates usage guidelines."}'),
        (400, body("filtered", code="content_filter")),
        (400, body("no", code="ResponsibleAIPolicyViolation")),
        (400, body("no", code="content_policy_violation")),
        (400, body("no", code="data_inspection_failed")),
        (400, body("Your request was rejected by the safety system", code="moderation_blocked")),
        (400, b'{"error":{"type":"invalid_request_error",'
         b'"message":"Output blocked by content filtering policy"}}'),
        (451, body("no", code="content_filter")),
    ],
)  # fmt: skip
def test_a_refused_prompt_is_the_caller_s(status: int, said: bytes) -> None:
    """Some send it as 403, where it must not be taken for a refused key."""
    assert of(status, said) is Fault.CONTENT
    assert VERDICTS[Fault.CONTENT].goes_on is False


NO_MODEL = {
    "openai": body("The model `x` does not exist", code="model_not_found"),
    "anthropic": typed("not_found_error", "model: claude-x"),
    "ollama": said_by_ollama("model 'x' not found"),
    "vllm": flat("The model `x` does not exist.", type="NotFoundError", code=404),
    "google": body("models/x is not found for API version v1", status="NOT_FOUND"),
    "azure": body("The API deployment does not exist.", code="DeploymentNotFound"),
}


@pytest.mark.parametrize("said", NO_MODEL.values(), ids=NO_MODEL)
def test_whose_a_missing_model_is_depends_on_who_named_it(said: bytes) -> None:
    """A target of the config's is the gateway's own; a name that the client chose is not."""
    assert of(404, said) is Fault.OUR_MODEL
    assert of(404, said, ours=False) is Fault.CALLER
    assert of(404, said, told=True) is Fault.OUR_MODEL


@pytest.mark.parametrize(
    ("status", "said", "fault"),
    [
        (404, b"404 page not found", Fault.NO_ROUTE),
        (404, b'{"detail":"Not Found"}', Fault.NO_ROUTE),
        (404, body("File Not Found", type="not_found_error"), Fault.NO_ROUTE),
        (404, body("Invalid URL (POST /v1/rerank)"), Fault.NO_ROUTE),
        (404, body("Response with id 'resp_1' not found."), Fault.CALLER),
        (400, body("no", code="previous_response_not_found"), Fault.CALLER),
        (404, body("No endpoints found that support image input"), Fault.CALLER),
        (400, body("x is not a valid model ID"), Fault.OUR_MODEL),
        (400, b'{"message":"Invalid model: x","type":"invalid_model","code":"1500"}',
         Fault.OUR_MODEL),
        (400, body("API key not valid. Please pass a valid API key."), Fault.OUR_KEY),
        (400, body("Your credit balance is too low to access the Anthropic API."), Fault.OUR_KEY),
    ],
)  # fmt: skip
def test_what_else_may_be_missing_or_refused(status: int, said: bytes, fault: Fault) -> None:
    """A route, an earlier response, a capability; and clouds that say 400 to a key."""
    assert of(status, said) is fault


ACCOUNT = "visit https://platform.openai.com/account/billing to add a payment method"
NO_QUOTA = {
    "openai": body("You exceeded your current quota", type="insufficient_quota",
                   code="insufficient_quota"),
    "openai, inactive": body("Your account is not active", code="billing_not_active"),
    "anthropic": typed("billing_error", "no"),
    "anthropic, spend limit": typed(
        "rate_limit_error", "This workspace has reached its monthly spend limit."
    ),
    "anthropic, own limit": typed(
        "rate_limit_error", "You have reached your specified API usage limits."
    ),
    "deepseek": body("Insufficient Balance", type="unknown_error"),
    "litellm": body("Budget has been exceeded! Current cost: 9", type="budget_exceeded"),
}  # fmt: skip


@pytest.mark.parametrize("said", NO_QUOTA.values(), ids=NO_QUOTA)
def test_an_account_without_credit_is_the_gateway_s_own(said: bytes) -> None:
    """As 429, where no waiting helps, and as 400, which some send for it."""
    assert of(429, said) is Fault.OUR_QUOTA
    assert of(429, said, told=True) is Fault.OUR_QUOTA
    assert of(400, said) is Fault.OUR_KEY
    assert of(402, said) is Fault.OUR_KEY


@pytest.mark.parametrize(
    "said",
    [
        body(f"Rate limit reached for x; {ACCOUNT}", type="tokens", code="rate_limit_exceeded"),
        typed("rate_limit_error", "This request would exceed your organization's rate limit"),
        body("You exceeded your current quota, please check your plan and billing details",
             status="RESOURCE_EXHAUSTED"),
        body("You exceeded your current quota. Please retry in 34.1s.", code=429),
        body("Requests rate limit exceeded", type="rate_limited"),
    ],
)  # fmt: skip
def test_a_rate_that_is_too_high_is_over_soon(said: bytes) -> None:
    """However much it says of bills and quotas."""
    assert of(429, said) is Fault.BUSY


def test_who_says_when_to_come_again_has_credit_unless_a_code_says_otherwise() -> None:
    """Anthropic sends Retry-After with every limit but that of what may be spent."""
    spent, coded = NO_QUOTA["anthropic, spend limit"], NO_QUOTA["openai"]
    assert fault_of_answer(429, spent, names_ours=True, says_when=True) is Fault.BUSY
    assert fault_of_answer(429, coded, names_ours=True, says_when=True) is Fault.OUR_QUOTA


def test_an_error_event_that_only_says_error_is_a_suspicion() -> None:
    """What would have had no status of its own stands for a 500 and not for a proxy's 502."""
    assert of(502, body(), told=True) is Fault.BROKEN
    assert of(529, body(), told=True) is Fault.DOWN
    assert of(401, body(), told=True) is Fault.OUR_KEY


@pytest.mark.parametrize(
    "said",
    [b"null", b"[]", b"7", b'"x"', b'{"error":null}', b'{"error":[]}', b'{"error":{"message":7}}',
     b'{"error":{"code":{"a":1},"type":[]}}', b'{"detail":[{"msg":"x"}]}', b"\xff", b"{" * 9000],
)  # fmt: skip
def test_a_strange_error_is_read_as_well_as_it_can_be(said: bytes) -> None:
    """It is a known fault all the same, and nothing breaks."""
    for status in (400, 403, 404, 500):
        assert of(status, said) in VERDICTS
