"""What `/openapi.json` says in words: of the gateway, of every status, and of each route.

A route is found by its handler's name, of which the operation's id is made too: "show_run" is
"showRun" there.
"""

from __future__ import annotations

from typing import NamedTuple

from tidegate.core.records.usage import GROUPS
from tidegate.gateway.api.schemas import (
    EVENTS,
    JSON,
    RUN_ID,
    JsonObject,
    answer,
    header,
    json_answer,
    links,
    query,
    ref,
    text_answer,
)
from tidegate.gateway.api.usage import AGO, DEFAULT_BY, DEFAULT_SINCE

ABOUT = (
    "An LLM streaming gateway. Requests go to an upstream that speaks their format, answers come"
    " back with their bytes unchanged; only what the gateway itself reads and says is described"
    " here. Where GET is, HEAD is too. An error has the form that the clients of its route read."
    " A token is asked for once there is one. The role that an operation needs is the scope of the"
    " token: use, or read, which those of scope use and owner have too."
)
TAGS = {
    "openai": "OpenAI's API, and what has grown around it.",
    "anthropic": "Anthropic's API.",
    "ollama": "Ollama's own API.",
    "runs": "Answers by their own ids: look at them, come back to them, end them.",
    "gateway": "The gateway itself.",
}

# --- what every route may answer ----------------------------------------------------------------

ALWAYS = {
    "400": "A request that is no request, or a Host that is no host.",
    "403": "A Host that is not allowed, or a page of another site.",
    "408": "The head or the body took longer than header_s or body_s.",
    "431": "A header or the target is longer than 8190 bytes, or the whole head than 32 KiB.",
    "500": "A fault of the gateway's own; its log says more.",
    "503": "No place, no memory or no connection now.",
}
_TOO_MANY = "Too many wrong tokens came from the client's address; a valid one is let in."
WITH_TOKENS = {
    "401": "No token, none that is valid, or valid ones of different owners.",
    "403": "A Host that is not allowed, a page of another site, or a token that is not for this.",
    "429": _TOO_MANY,
}
OF_UPSTREAMS = {
    "404": "There is no such model; the message names those there are.",
    "409": "The run was cancelled before there was anything to answer with.",
    "413": "The body is larger than max_body.",
    "415": "The body is sent neither as gzip or deflate nor as it is.",
    "417": "Another Expect than 100-continue.",
    "429": f"The upstream has had enough for now. {_TOO_MANY}",
    "502": "No upstream could answer; the message says which one and why.",
    "504": "A limit was reached before there was an answer; the message names it.",
    "508": "This request has come through too many tidegates: an upstream leads back here.",
    "4XX": "What the upstream had against the request, as it said it.",
    "5XX": "What was wrong at the upstream, as it said it.",
}
HEADERS_OF = {
    "401": ("WWW-Authenticate",),
    "415": ("Accept-Encoding",),
    "429": ("Retry-After",),
    "503": ("Retry-After",),
}

# --- what a request may hold --------------------------------------------------------------------

BODY = (
    "Beside these fields everything passes to the upstream as it came. It may be sent as gzip or"
    " deflate, with Content-Encoding, and is limited by max_body as sent and as inflated."
)
RESPONSE_FIELDS: JsonObject = {
    "background": {
        "type": ["boolean", "null"],
        "description": "Answer at once, with an id to come back with; store must not be false.",
    },
    "store": {
        "type": ["boolean", "null"],
        "description": "Whether the answer can be asked for later; true where it is left out.",
    },
    "previous_response_id": {
        "type": ["string", "null"],
        "description": "The answer that this one goes on from: it goes to the same upstream.",
    },
}
HOPS = header(
    "x-tidegate-hops",
    "Through how many tidegates the request has come. The fifth in a row answers 508.",
    {"type": "integer", "minimum": 0, "maximum": 3},
)
ON_DISCONNECT = header(
    "x-on-disconnect",
    "What becomes of the answer when its reader leaves; to continue, it has to be a stream.",
    {"enum": ["cancel", "continue", ""], "default": "cancel"},
)
_AFTER: JsonObject = {"type": "integer", "minimum": -1, "maximum": 2**53 - 1}
_CURSOR = (
    query("starting_after", "The last event that you have.", _AFTER),
    header("Last-Event-ID", "The same, as browsers say it.", _AFTER),
)
_STREAM = query("stream", "true: its events are sent.", {"type": "string"})
_LIMIT = query("limit", "At most so many.", {"type": "integer", "minimum": 1, "maximum": 1000})

# --- each route ---------------------------------------------------------------------------------


class Description(NamedTuple):
    """What a handler does, and what it answers beyond what every route may.

    An answer that is only a text is an error like the others.
    """

    summary: str
    answers: JsonObject
    tag: str = "gateway"
    parameters: tuple[JsonObject, ...] = ()


_OF_A_RUN = ("showRun", "streamRun", "cancelRun")
RUN_LINKS = links(_OF_A_RUN, f"$response.header.{RUN_ID}")
_LISTED_LINKS = links(_OF_A_RUN, "$response.body#/data/0/id")
_MODEL_LINKS = links(("showModel",), "$response.body#/data/0/id")
_NO_RUN = "There is no such run: released, never there, or not yours."
_NO_RESPONSE = "There is no such response: released, never there, or not yours."
_NO_OLLAMA = "No upstream speaks Ollama's own API, or none answers."
_GONE = "It is no longer held."
_EVENTS: JsonObject = {EVENTS: ref("Events")}

BY_HANDLER = {
    "converse_responses": Description(
        "Responses over WebSocket, one after another",
        {
            "101": {"description": "A WebSocket: each event of an answer a text of JSON."},
            "405": "It was not asked for as a WebSocket.",
        },
        "openai",
    ),
    "list_input_items": Description(
        "Not kept here: always 404",
        {"404": "There is no such response, or what was asked for it is not kept."},
        "openai",
    ),
    "show_response": Description(
        "A response as it is now, or its events",
        {
            "200": answer("The response, or its events.", {JSON: ref("Response")} | _EVENTS),
            "404": _NO_RESPONSE,
            "410": _GONE,
        },
        "openai",
        (_STREAM, *_CURSOR),
    ),
    "delete_response": Description(
        "Forget a response, and end it if need be",
        {"200": json_answer("It is forgotten.", "Deleted"), "404": _NO_RESPONSE},
        "openai",
    ),
    "cancel_response": Description(
        "End a background response",
        {
            "200": json_answer("The response as it is now.", "Response"),
            "404": _NO_RESPONSE,
            "410": _GONE,
        },
        "openai",
    ),
    "list_ollama_models": Description(
        "The models of every Ollama",
        {"200": json_answer("The models.", "OllamaModels"), "502": _NO_OLLAMA},
        "ollama",
    ),
    "list_loaded_models": Description(
        "The models that every Ollama has in memory",
        {"200": json_answer("The models.", "OllamaModels"), "502": _NO_OLLAMA},
        "ollama",
    ),
    "show_ollama_version": Description(
        "The version of the first Ollama that answers",
        {"200": json_answer("The version.", "OllamaVersion"), "502": _NO_OLLAMA},
        "ollama",
    ),
    "list_models": Description(
        "The models, from memory, at once",
        {"200": json_answer("The models.", "Models", _MODEL_LINKS)},
        "openai",
    ),
    "show_model": Description(
        "One model",
        {"200": json_answer("The model.", "Model"), "404": "There is no model of that name."},
        "openai",
    ),
    "list_runs": Description(
        "Your runs, newest first; everyone's to who may look after all",
        {"200": json_answer("The runs.", "Runs", _LISTED_LINKS)},
        "runs",
        (_LIMIT,),
    ),
    "show_run": Description(
        "One run", {"200": json_answer("The run.", "RunInFull"), "404": _NO_RUN}, "runs"
    ),
    "stream_run": Description(
        "The events of a run, from a cursor on; over WebSocket when asked to upgrade",
        {
            "101": {"description": "A WebSocket: each event a text {seq, event, data}."},
            "200": answer("The events, each with its number as its id.", _EVENTS),
            "204": answer("The run is over, and you have all of it."),
            "404": _NO_RUN,
            "410": "Events behind the cursor are no longer held; the message names the oldest.",
        },
        "runs",
        _CURSOR,
    ),
    "cancel_run": Description(
        "End a run; one that is over is shown as it is",
        {"200": json_answer("The run.", "Run"), "404": _NO_RUN},
        "runs",
    ),
    "delete_run": Description(
        "Forget a run, and end it if need be; the history keeps that there was one",
        {"200": json_answer("It is forgotten.", "Deleted"), "404": _NO_RUN},
        "runs",
    ),
    "show_usage": Description(
        "How many tokens were used, and what they cost by the prices in the config",
        {
            "200": json_answer("What was used most first; of days the newest.", "Usage"),
            "400": "Neither a group nor a time that is known.",
            "503": answer(
                "The history is off or cannot be read now, and why; or no place, no memory.",
                {JSON: ref("Error")},
                ("Retry-After",),
            ),
        },
        "runs",
        (
            query("by", "What is added up.", {"enum": list(GROUPS), "default": DEFAULT_BY}),
            query(
                "since",
                "How long ago (90s, 30min, 2h, 7d, 4w; a number is seconds), today, or a date.",
                {
                    "anyOf": [
                        {"type": "string", "pattern": f"^{AGO}$"},
                        {"type": "string", "format": "date"},
                        {"type": "string", "format": "date-time"},
                        {"const": "today"},
                    ],
                    "default": DEFAULT_SINCE,
                },
            ),
        ),
    ),
    "list_repairs": Description(
        "What needs mending: since when, why, and how",
        {"200": json_answer("Open problems, the worst first.", "Repairs")},
    ),
    "show_metrics": Description("For Prometheus", {"200": text_answer("Every metric.")}),
    "is_alive": Description(
        "It is alive, if only parked", {"200": json_answer("It is alive.", "Alive")}
    ),
    "is_ready": Description(
        "Whether it can serve",
        {
            "200": json_answer("It can serve.", "Ready"),
            "503": answer(
                "It cannot serve, and why; or all connections are in use.",
                {JSON: {"anyOf": [ref("Ready"), ref("Error")]}},
                ("Retry-After",),
            ),
        },
    ),
    "describe": Description("This document", {"200": json_answer("This document.", "Document")}),
    "watch": Description(
        "What the page shows, told each second as events: samples, overview, sample, mark",
        {
            "200": answer("The events.", _EVENTS),
            "503": answer(
                "As many pages are open as may be, or no memory is left for one.",
                {JSON: ref("Error")},
                ("Retry-After",),
            ),
        },
    ),
    "show_root": Description(
        "The page for a browser, one sentence for the rest",
        {
            "200": answer("The page, or the sentence.", {"text/html": {}, "text/plain": {}}),
            "304": answer("The page is as it was."),
            "503": text_answer("It is parked, and why."),
        },
    ),
    "show_file": Description(
        "A file of the page",
        {
            "200": answer("The file.", {"*/*": {}}),
            "304": answer("It is as it was."),
            "404": "The page has no such file.",
        },
    ),
}
