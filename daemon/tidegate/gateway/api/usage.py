"""`/v1/usage`: how many tokens were used, by whom, of what, as the history has it.

A token sees its own use, one that looks after all sees everyone's. Costs are made when it is asked,
of the prices that the config has then.
"""

from __future__ import annotations

import re
import time
from datetime import datetime

import msgspec

from tidegate.core.records.usage import GROUPS
from tidegate.gateway import web
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.stores.store_thread import StoreUnavailable

DEFAULT_BY, DEFAULT_SINCE = GROUPS[0], "7d"  # as the command line
AGO = "([0-9]{1,10})(s|min|h|d|w)?"
_AGO = re.compile(AGO)
_UNITS_S = {None: 1, "s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

_encode = msgspec.json.encode


async def show_usage(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """Sum up what was used: `?by=model&since=7d`."""
    by = request.query.get("by", DEFAULT_BY)
    if by not in GROUPS:
        raise Refused(400, f"by is one of {', '.join(GROUPS)}", "bad_by")
    since = moment(request.query.get("since", DEFAULT_SINCE), time.time())
    try:
        lines = await gateway.recall.usage(by, since, caller.sees, gateway.settings.models)
    except StoreUnavailable as error:
        raise Refused(
            503, f"the history cannot be read: {error}", "history_unavailable", type="server_error"
        ) from None
    body = _encode({"object": "list", "by": by, "since": since, "data": lines})
    return web.Response(body=body, content_type="application/json")


def moment(text: str, now: float) -> float:
    """Read when it begins: so long ago ("7d", seconds), or a date. Raises Refused: 400.

    Both times are Unix seconds. Today, and a date without a zone, are the gateway's own.
    """
    if text == "today":
        text = datetime.fromtimestamp(now).date().isoformat()
    if ago := _AGO.fullmatch(text):
        return max(0.0, now - int(ago[1]) * _UNITS_S[ago[2]])
    try:
        # In a query a + that was not escaped has become a blank.
        date, _, rest = text.partition("T")
        at = datetime.fromisoformat(f"{date}T{rest.replace(' ', '+')}" if rest else text)
    except ValueError:
        raise Refused(
            400,
            "since is how long ago (90s, 30min, 2h, 7d, 4w), today, or a date like 2026-11-22"
            " or 2026-11-22T06:00:00Z",
            "bad_since",
        ) from None
    try:
        return max(0.0, at.timestamp())
    except (ValueError, OverflowError):  # at either end of the calendar
        return 0.0 if at.year < 1970 else now
