/* The answers that the stub writes and the load client checks, byte for byte.
 *
 * Every answer belongs to one request: the client begins the prompt with 16 hexadecimal digits, its
 * owner, and the stub repeats them in each event's id. A gateway that mixes two streams up is caught
 * by that. Each event also carries the moment it was made, in a field of fixed width, so that a
 * client on the same computer can tell how long the event was on its way.
 */
#ifndef ANSWER_H
#define ANSWER_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { OWNER_WIDTH = 16, STAMP_WIDTH = 20, NUMBER_WIDTH = 8, EVENT_MAX = 512 };

#define OWNER_ZERO "0000000000000000"
#define STAMP_ZERO "00000000000000000000"
#define NUMBER_ZERO "00000000"
#define OWNER_MARK "\"chatcmpl-"
#define EVENT_START "data: {\"id\":" OWNER_MARK
#define EVENT_MIDDLE                                                                    \
    "\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,\"model\":\"tide\"," \
    "\"system_fingerprint\":\"fp_"
#define EVENT_REST "\",\"choices\":[{\"index\":0,\"delta\":"
#define TEXT_START "{\"content\":\""
#define DONE_EVENT "data: [DONE]\n\n"
#define PLAIN_START "{\"id\":" OWNER_MARK
#define PLAIN_TEXT "The tide comes in twice a day."
#define PLAIN_REST                                                                         \
    "\",\"object\":\"chat.completion\",\"created\":1790000000,\"model\":\"tide\","          \
    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"            \
    "\"" PLAIN_TEXT "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],"                 \
    "\"usage\":{\"prompt_tokens\":24,\"completion_tokens\":9,\"total_tokens\":33}}"

enum {
    OWNER_AT = sizeof EVENT_START - 1,
    STAMP_AT = OWNER_AT + OWNER_WIDTH + sizeof EVENT_MIDDLE - 1,
    NUMBER_AT = STAMP_AT + STAMP_WIDTH + sizeof EVENT_REST - 1 + sizeof TEXT_START - 1,
    PLAIN_OWNER_AT = sizeof PLAIN_START - 1,
};

/* An answer is one ROLE event, TEXT events numbered from 1, one STOP event and DONE_EVENT. */
enum kind { ROLE, TEXT, STOP, KINDS };

struct event {
    char bytes[EVENT_MAX];
    int length;
};

static inline void make_events(struct event events[KINDS])
{
    static const char *const rest[KINDS] = {
        [ROLE] = "{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
        [TEXT] = TEXT_START NUMBER_ZERO " and\"},\"finish_reason\":null}]}\n\n",
        [STOP] = "{},\"finish_reason\":\"stop\"}]}\n\n",
    };
    for (int kind = 0; kind < KINDS; kind++)
        events[kind].length =
            snprintf(events[kind].bytes, EVENT_MAX, "%s%s%s%s%s%s", EVENT_START, OWNER_ZERO,
                     EVENT_MIDDLE, STAMP_ZERO, EVENT_REST, rest[kind]);
}

/* The kind of the event at `place` (from 0) in an answer of `chunks` events. */
static inline enum kind kind_at(int place, int chunks)
{
    return place == 0 ? ROLE : place == chunks - 1 ? STOP : TEXT;
}

static inline void put_digits(char *at, int width, uint64_t value)
{
    while (width-- > 0) {
        at[width] = (char)('0' + value % 10);
        value /= 10;
    }
}

/* The number written in `width` digits, or UINT64_MAX where there is anything else. */
static inline uint64_t get_digits(const char *at, int width)
{
    uint64_t value = 0;
    for (int i = 0; i < width; i++) {
        if (at[i] < '0' || at[i] > '9')
            return UINT64_MAX;
        value = value * 10 + (uint64_t)(at[i] - '0');
    }
    return value;
}

static inline uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
