/* A client that keeps many requests going and checks every byte of every answer.
 *
 *     load port=8433 model=each-20 slots=32 warm_ms=500 window_ms=3000
 *
 *     port        where the gateway, or the stub, listens on loopback
 *     model       what the stub shall answer; stub.c knows the shapes
 *     slots       connections, each with one request at a time
 *     fresh       1: a slot closes its connection after each answer and makes another
 *     rewritten   1: the gateway writes JSON anew, so that an event's owner, number and stamp are
 *                 looked for, and the rest of it is not compared
 *     ramp_ms     the slots start at random moments of this time
 *     warm_ms     what is not counted, at first
 *     window_ms   what is counted
 *     requests    answers in all; 0: every slot goes on until the window ends
 *     limit_ms    then it gives up, and what has no answer yet is an error
 *     token       sent as a bearer token, if it is not empty
 *     headers     more lines of the request's head, each with its \r\n
 *
 * It prints "begin" and "end" as the window opens and closes, so that its caller can read the
 * gateway's processor time and memory at these moments, and then one line of JSON. Answers are
 * counted when they are complete, events when they arrive. All that is asked for is waited for
 * and checked, in the window or not. How long an answer took is told of all of them, from before its
 * connection was made, if it needed one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "answer.h"

enum {
    HEAD_MAX = 4096,
    HELD_MAX = 4096,      /* an event, or a plain answer, that is not complete yet */
    READ_MAX = 262144,
    ERRORS_MAX = 1000,    /* a gateway that fails this often has failed */
    SLOTS_MAX = 16384,
};

struct options {
    long port, slots, fresh, rewritten, ramp_ms, warm_ms, window_ms, requests, limit_ms;
    const char *model, *token, *headers;
};

enum reading { IN_HEAD, IN_SIZE, IN_CHUNK, AFTER_CHUNK, IN_TRAILER, IN_LENGTH };

struct slot {
    int fd;                /* -1: no connection */
    bool is_connecting;
    bool is_asking;        /* a request is on its way and its answer incomplete */
    bool is_done;          /* [DONE] was seen */
    bool is_line_empty;    /* so far, in the trailer */
    enum reading reading;
    int place;             /* of the event that must come next */
    uint64_t start_ns;
    uint64_t asked_ns;
    uint64_t left;         /* bytes of this chunk, or of the whole body */
    char owner[OWNER_WIDTH + 1];
    int head_length;
    int held_length;
    char head[HEAD_MAX];
    char held[HELD_MAX];
};

struct counts {
    uint64_t answers, events, bytes;
};

/* Times in nanoseconds, of which the report tells the median and the worst. */
struct times {
    uint64_t *ns;
    size_t count, room;
};

static struct options options = {
    .slots = 1, .limit_ms = 60000, .model = "", .token = "", .headers = ""};
static struct event events[KINDS];
static int chunks;           /* events that an answer must have; 0: it is plain */
static struct slot *slots;
static int poller;
static bool is_window_open, is_over;
static uint64_t asked, asking, owners;
static struct counts all, in_window;
static uint64_t errors, connects;
static char first_error[256];
static struct times delays;    /* of each event in the window */
static struct times durations; /* of each answer */

/* --- the checks ------------------------------------------------------------------------------ */

static void keep(struct times *times, uint64_t ns)
{
    if (times->count == times->room) {
        times->room = times->room == 0 ? 65536 : 2 * times->room;
        times->ns = realloc(times->ns, times->room * sizeof *times->ns);
        if (times->ns == NULL)
            abort();
    }
    times->ns[times->count++] = ns;
}

/* What is wrong with the event that is next, or NULL. Everything but its stamp is known. */
static const char *compare_event(const struct slot *s, const char *bytes, size_t length,
                                 const char **stamp)
{
    const struct event *expected = &events[kind_at(s->place, chunks)];
    if (length != (size_t)expected->length)
        return "an event of a wrong length";
    if (memcmp(bytes, expected->bytes, OWNER_AT) != 0)
        return "an event with a wrong start";
    if (memcmp(bytes + OWNER_AT, s->owner, OWNER_WIDTH) != 0)
        return "an event of another request";
    int from = OWNER_AT + OWNER_WIDTH;
    if (memcmp(bytes + from, expected->bytes + from, (size_t)(STAMP_AT - from)) != 0)
        return "an event with a wrong middle";
    *stamp = bytes + STAMP_AT;
    from = STAMP_AT + STAMP_WIDTH;
    if (expected == &events[TEXT]) {
        if (memcmp(bytes + from, expected->bytes + from, (size_t)(NUMBER_AT - from)) != 0)
            return "an event with a wrong rest";
        if (get_digits(bytes + NUMBER_AT, NUMBER_WIDTH) != (uint64_t)s->place)
            return "an event out of order";
        from = NUMBER_AT + NUMBER_WIDTH;
    }
    if (memcmp(bytes + from, expected->bytes + from, length - (size_t)from) != 0)
        return "an event with a wrong end";
    return NULL;
}

/* Where the text behind `mark` begins, if `room` bytes of it are there, or NULL. */
static const char *find_behind(const char *bytes, size_t length, const char *mark, size_t room)
{
    const char *at = memmem(bytes, length, mark, strlen(mark));
    if (at == NULL || (size_t)(bytes + length - at) < strlen(mark) + room)
        return NULL;
    return at + strlen(mark);
}

/* The same for an event whose JSON was written anew. */
static const char *search_event(const struct slot *s, const char *bytes, size_t length,
                                const char **stamp)
{
    enum kind kind = kind_at(s->place, chunks);
    const char *owner = find_behind(bytes, length, OWNER_MARK, OWNER_WIDTH);
    if (owner == NULL || memcmp(owner, s->owner, OWNER_WIDTH) != 0)
        return "an event of another request";
    *stamp = find_behind(bytes, length, "\"fp_", STAMP_WIDTH);
    if (*stamp == NULL)
        return "an event without its stamp";
    const char *number = find_behind(bytes, length, TEXT_START + 1, NUMBER_WIDTH);
    if (kind == TEXT &&
        (number == NULL || get_digits(number, NUMBER_WIDTH) != (uint64_t)s->place))
        return "an event out of order";
    if (kind == STOP && find_behind(bytes, length, "\"finish_reason\":\"stop\"", 0) == NULL)
        return "no end where it is due";
    return NULL;
}

static const char *check_event(struct slot *s, const char *bytes, size_t length, uint64_t now)
{
    if (s->is_done)
        return "an event after [DONE]";
    if (s->place == chunks) {
        if (length != sizeof DONE_EVENT - 1 || memcmp(bytes, DONE_EVENT, length) != 0)
            return "no [DONE] where it is due";
        s->is_done = true;
        return NULL;
    }
    const char *stamp = NULL;
    const char *wrong = options.rewritten ? search_event(s, bytes, length, &stamp)
                                          : compare_event(s, bytes, length, &stamp);
    if (wrong != NULL)
        return wrong;
    uint64_t sent_ns = get_digits(stamp, STAMP_WIDTH);
    if (sent_ns > now)
        return "an event from the future";
    s->place++;
    all.events++;
    if (is_window_open) {
        in_window.events++;
        keep(&delays, now - sent_ns);
    }
    return NULL;
}

/* Check the complete events in `bytes`; `used` says how far they reach. */
static const char *check_events(struct slot *s, const char *bytes, size_t length, uint64_t now,
                                size_t *used)
{
    size_t at = 0;
    while (at < length) {
        if (bytes[at] == ':') { /* A comment, one line: a gateway's sign of life. */
            const char *end = memchr(bytes + at, '\n', length - at);
            if (end == NULL)
                break;
            at = (size_t)(end + 1 - bytes);
            continue;
        }
        const char *end = memmem(bytes + at, length - at, "\n\n", 2);
        if (end == NULL)
            break;
        size_t event_length = (size_t)(end + 2 - (bytes + at));
        const char *wrong = check_event(s, bytes + at, event_length, now);
        if (wrong != NULL)
            return wrong;
        at += event_length;
    }
    *used = at;
    return NULL;
}

/* Take bytes of the body. Returns what is wrong, or NULL. */
static const char *take_body(struct slot *s, const char *bytes, size_t length, uint64_t now)
{
    size_t used = 0;
    if (chunks > 0 && s->held_length == 0) {
        const char *wrong = check_events(s, bytes, length, now, &used);
        if (wrong != NULL)
            return wrong;
        bytes += used;
        length -= used;
    }
    while (length > 0) {
        size_t room = HELD_MAX - (size_t)s->held_length;
        size_t taken = length < room ? length : room;
        if (taken == 0)
            return "an event, or an answer, that is too long";
        memcpy(s->held + s->held_length, bytes, taken);
        s->held_length += (int)taken;
        bytes += taken;
        length -= taken;
        if (chunks > 0) {
            const char *wrong = check_events(s, s->held, (size_t)s->held_length, now, &used);
            if (wrong != NULL)
                return wrong;
            s->held_length -= (int)used;
            memmove(s->held, s->held + used, (size_t)s->held_length);
        }
    }
    return NULL;
}

/* What is missing in an answer that has ended, or NULL. */
static const char *check_end(const struct slot *s)
{
    if (chunks > 0) {
        if (s->place < chunks)
            return "an answer with events missing";
        if (!s->is_done)
            return "an answer without [DONE]";
        return s->held_length > 0 ? "bytes after the last event" : NULL;
    }
    if (options.rewritten) {
        size_t length = (size_t)s->held_length;
        const char *owner = find_behind(s->held, length, OWNER_MARK, OWNER_WIDTH);
        if (owner == NULL || memcmp(owner, s->owner, OWNER_WIDTH) != 0 ||
            find_behind(s->held, length, PLAIN_TEXT, 0) == NULL)
            return "a plain answer with wrong content";
        return NULL;
    }
    char expected[] = PLAIN_START OWNER_ZERO PLAIN_REST;
    memcpy(expected + PLAIN_OWNER_AT, s->owner, OWNER_WIDTH);
    if ((size_t)s->held_length != sizeof expected - 1 ||
        memcmp(s->held, expected, sizeof expected - 1) != 0)
        return "a plain answer with wrong content";
    return NULL;
}

/* --- HTTP ------------------------------------------------------------------------------------------ */

/* Read the head that is complete in the slot. Returns what is wrong with it, or NULL. */
static const char *take_head(struct slot *s)
{
    if (strncmp(s->head, "HTTP/1.1 200", 12) != 0)
        return "a status other than 200";
    const char *announced = strcasestr(s->head, "\r\ncontent-length:");
    if (announced != NULL) {
        s->reading = IN_LENGTH;
        s->left = strtoull(announced + 17, NULL, 10);
    } else if (strcasestr(s->head, "\r\ntransfer-encoding: chunked") != NULL) {
        s->reading = IN_SIZE;
        s->left = 0;
    } else {
        return "a body with neither length nor chunks";
    }
    return NULL;
}

/* Take what arrived. Returns what is wrong, or NULL; `is_complete` tells that the answer ended. */
static const char *take_bytes(struct slot *s, const char *bytes, size_t length, uint64_t now,
                              bool *is_complete)
{
    const char *wrong, *end = bytes + length;
    *is_complete = false;
    while (bytes < end && !*is_complete) {
        switch (s->reading) {
        case IN_HEAD:
            if (s->head_length == HEAD_MAX - 1)
                return "a head that is too long";
            s->head[s->head_length++] = *bytes++;
            if (s->head_length < 4 || memcmp(s->head + s->head_length - 4, "\r\n\r\n", 4) != 0)
                break;
            s->head[s->head_length] = '\0';
            if ((wrong = take_head(s)) != NULL)
                return wrong;
            *is_complete = s->reading == IN_LENGTH && s->left == 0;
            break;
        case IN_SIZE: {
            char c = *bytes++;
            if (c >= '0' && c <= '9')
                s->left = s->left * 16 + (uint64_t)(c - '0');
            else if ((c | 32) >= 'a' && (c | 32) <= 'f')
                s->left = s->left * 16 + (uint64_t)((c | 32) - 'a' + 10);
            else if (c == '\n')
                s->reading = s->left > 0 ? IN_CHUNK : IN_TRAILER;
            else if (c != '\r')
                return "a chunk size that is no number";
            s->is_line_empty = true;
            break;
        }
        case IN_CHUNK:
        case IN_LENGTH: {
            uint64_t here = (uint64_t)(end - bytes);
            size_t taken = (size_t)(here < s->left ? here : s->left);
            if ((wrong = take_body(s, bytes, taken, now)) != NULL)
                return wrong;
            bytes += taken;
            s->left -= taken;
            if (s->left == 0 && s->reading == IN_CHUNK)
                s->reading = AFTER_CHUNK;
            else
                *is_complete = s->left == 0;
            break;
        }
        case AFTER_CHUNK:
            if (*bytes++ == '\n')
                s->reading = IN_SIZE;
            break;
        case IN_TRAILER:
            if (*bytes == '\n') {
                *is_complete = s->is_line_empty;
                s->is_line_empty = true;
            } else if (*bytes != '\r') {
                s->is_line_empty = false;
            }
            bytes++;
            break;
        }
    }
    return bytes < end ? "bytes after the answer" : NULL;
}

/* --- the slots ------------------------------------------------------------------------------------- */

static void close_slot(struct slot *s)
{
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
    if (s->is_asking)
        asking--;
    s->is_asking = false;
}

static void fail(struct slot *s, const char *wrong)
{
    if (errors++ == 0)
        snprintf(first_error, sizeof first_error, "%s (event %d, status %d)", wrong, s->place,
                 s->head_length >= 12 ? atoi(s->head + 9) : 0);
    close_slot(s);
}

static bool may_ask(void)
{
    return options.requests > 0 ? asked < (uint64_t)options.requests : !is_over;
}

static void send_request(struct slot *s)
{
    static const char body[] =
        "{\"model\":\"%s\",\"stream\":%s,\"messages\":[{\"role\":\"system\","
        "\"content\":\"%s You are a helpful assistant who knows the sea.\"},{\"role\":\"user\","
        "\"content\":\"How often does the tide come in, and why is it not at the same hour "
        "each day?\"}]}";
    char content[1024], request[2048];
    const char *is_stream = chunks > 0 ? "true" : "false";
    int body_length =
        snprintf(content, sizeof content, body, options.model, is_stream, s->owner);
    int length = snprintf(request, sizeof request,
                          "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%ld\r\n"
                          "%s%s%s%sContent-Type: application/json\r\nAccept: */*\r\n"
                          "User-Agent: bench\r\nContent-Length: %d\r\n\r\n%s",
                          options.port, *options.token ? "Authorization: Bearer " : "",
                          options.token, *options.token ? "\r\n" : "", options.headers,
                          body_length, content);
    if (send(s->fd, request, (size_t)length, MSG_NOSIGNAL) != length)
        fail(s, "a request that could not be sent");
}

static void connect_slot(struct slot *s)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)options.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    connects++;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct epoll_event interest = {.events = EPOLLIN | EPOLLOUT, .data.ptr = s};
    if (s->fd < 0 ||
        (connect(s->fd, (struct sockaddr *)&address, sizeof address) < 0 &&
         errno != EINPROGRESS) ||
        epoll_ctl(poller, EPOLL_CTL_ADD, s->fd, &interest) < 0) {
        fail(s, "a connection that could not be made");
        return;
    }
    s->is_connecting = true;
}

/* Ask for the next answer, on a new connection where there is none. */
static void ask(struct slot *s)
{
    if (!may_ask() || errors >= ERRORS_MAX)
        return;
    s->is_asking = true;
    s->asked_ns = now_ns();
    s->is_done = false;
    s->reading = IN_HEAD;
    s->place = s->head_length = s->held_length = 0;
    snprintf(s->owner, sizeof s->owner, "%08x%08" PRIx64, (unsigned)getpid(), ++owners);
    asked++;
    asking++;
    if (s->fd < 0)
        connect_slot(s);
    else
        send_request(s);
}

static void finish_connecting(struct slot *s)
{
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) {
        fail(s, "a connection that was refused");
        return;
    }
    struct epoll_event interest = {.events = EPOLLIN, .data.ptr = s};
    epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &interest);
    s->is_connecting = false;
    send_request(s);
}

static void finish_answer(struct slot *s)
{
    const char *wrong = check_end(s);
    if (wrong != NULL) {
        fail(s, wrong);
        return;
    }
    all.answers++;
    if (is_window_open)
        in_window.answers++;
    keep(&durations, now_ns() - s->asked_ns);
    s->is_asking = false;
    asking--;
    if (options.fresh || strcasestr(s->head, "\r\nconnection: close") != NULL)
        close_slot(s);
}

static void read_slot(struct slot *s)
{
    static char bytes[READ_MAX];
    bool is_complete = false;

    ssize_t got = recv(s->fd, bytes, sizeof bytes, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0 && !s->is_asking) {
        close_slot(s); /* An idle connection may be closed at any time. */
        return;
    }
    if (got <= 0) {
        fail(s, "a connection that ended in the middle of an answer");
    } else {
        all.bytes += (uint64_t)got;
        if (is_window_open)
            in_window.bytes += (uint64_t)got;
        const char *wrong = "bytes that were not asked for";
        if (s->is_asking)
            wrong = take_bytes(s, bytes, (size_t)got, now_ns(), &is_complete);
        if (wrong != NULL)
            fail(s, wrong);
        else if (is_complete)
            finish_answer(s);
    }
    if (!s->is_asking)
        ask(s);
}

/* --- the whole ------------------------------------------------------------------------------------- */

static void read_options(int argc, char **argv)
{
    const struct {
        const char *name;
        long *number;
        const char **text;
    } known[] = {
        {"port", &options.port, NULL},           {"model", NULL, &options.model},
        {"slots", &options.slots, NULL},         {"ramp_ms", &options.ramp_ms, NULL},
        {"warm_ms", &options.warm_ms, NULL},     {"window_ms", &options.window_ms, NULL},
        {"requests", &options.requests, NULL},   {"limit_ms", &options.limit_ms, NULL},
        {"fresh", &options.fresh, NULL},         {"rewritten", &options.rewritten, NULL},
        {"token", NULL, &options.token},         {"headers", NULL, &options.headers},
    };
    for (int i = 1; i < argc; i++) {
        const char *value = strchr(argv[i], '=');
        size_t k = 0, count = sizeof known / sizeof *known;
        size_t length = value == NULL ? 0 : (size_t)(value - argv[i]);
        while (k < count && (strlen(known[k].name) != length ||
                             strncmp(known[k].name, argv[i], length) != 0))
            k++;
        if (k == count) {
            fprintf(stderr, "load: what is %s?\n", argv[i]);
            exit(64);
        }
        if (known[k].number != NULL)
            *known[k].number = atol(value + 1);
        else
            *known[k].text = value + 1;
    }
    if (options.slots < 1 || options.slots > SLOTS_MAX || strlen(options.model) > 64 ||
        strlen(options.token) > 512 || strlen(options.headers) > 512)
        exit(64);
    sscanf(options.model, "%*[a-z]-%d", &chunks);
}

static int by_start(const void *one, const void *other)
{
    uint64_t a = ((const struct slot *)one)->start_ns, b = ((const struct slot *)other)->start_ns;
    return (a > b) - (a < b);
}

static int by_time(const void *one, const void *other)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

static void report_times(const char *name, struct times *times)
{
    static const struct {
        const char *name;
        double part;
    } told[] = {{"p50", 0.5}, {"p99", 0.99}, {"max", 1}};
    if (times->count > 0)
        qsort(times->ns, times->count, sizeof *times->ns, by_time);
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
        size_t at = (size_t)(told[i].part * ((double)times->count - 1));
        printf(",\"%s_%s_us\":%.1f", name, told[i].name,
               times->count == 0 ? 0 : (double)times->ns[at] / 1000);
    }
}

static void report(double window_s, double total_s)
{
    printf("{\"window_s\":%.6f,\"answers\":%" PRIu64 ",\"events\":%" PRIu64
           ",\"bytes\":%" PRIu64 ",\"all_s\":%.6f,\"all_answers\":%" PRIu64 ",\"all_events\":%" PRIu64
           ",\"all_bytes\":%" PRIu64 ",\"connects\":%" PRIu64 ",\"errors\":%" PRIu64
           ",\"first_error\":\"%s\"",
           window_s, in_window.answers, in_window.events, in_window.bytes, total_s, all.answers,
           all.events, all.bytes, connects, errors, first_error);
    report_times("delay", &delays);
    report_times("answer", &durations);
    puts("}");
}

static void say(const char *what)
{
    puts(what);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    make_events(events);
    poller = epoll_create1(EPOLL_CLOEXEC);
    slots = calloc((size_t)options.slots, sizeof *slots);
    if (slots == NULL)
        return 1;
    uint64_t start = now_ns();
    uint64_t opens = start + (uint64_t)options.warm_ms * 1000000u;
    uint64_t closes = opens + (uint64_t)options.window_ms * 1000000u;
    uint64_t limit = start + (uint64_t)options.limit_ms * 1000000u;
    srandom(8433); /* The same moments in every round, so that rounds can be compared. */
    for (long i = 0; i < options.slots; i++) {
        uint64_t ramp_ns = (uint64_t)options.ramp_ms * 1000000u;
        slots[i].fd = -1;
        slots[i].start_ns = start + (uint64_t)((double)random() / RAND_MAX * (double)ramp_ns);
    }
    qsort(slots, (size_t)options.slots, sizeof *slots, by_start);

    long started = 0;
    uint64_t opened = 0, closed = 0, now = start;
    while (errors < ERRORS_MAX) {
        for (; started < options.slots && slots[started].start_ns <= now; started++)
            ask(&slots[started]);
        if (opened == 0 && now >= opens) {
            opened = now;
            say("begin");
            is_window_open = true;
        }
        if (opened > 0 && closed == 0 && now >= closes) {
            closed = now;
            is_window_open = false;
            is_over = true;
            say("end");
        }
        bool is_idle = asking == 0 && started == options.slots;
        if ((is_idle && closed > 0) || now >= limit)
            break;
        uint64_t next = closed > 0 ? limit : opened > 0 ? closes : opens;
        if (started < options.slots && slots[started].start_ns < next)
            next = slots[started].start_ns;
        uint64_t wait_ns = next > now ? next - now : 0;
        struct timespec wait = {.tv_sec = (time_t)(wait_ns / 1000000000u),
                                .tv_nsec = (long)(wait_ns % 1000000000u)};
        struct epoll_event happened[256];
        int count = epoll_pwait2(poller, happened, 256, &wait, NULL);
        for (int i = 0; i < count; i++) {
            struct slot *s = happened[i].data.ptr;
            if (s->is_connecting)
                finish_connecting(s);
            else
                read_slot(s);
        }
        now = now_ns();
    }
    for (long i = 0; i < options.slots; i++)
        if (slots[i].is_asking)
            fail(&slots[i], "an answer that did not come in time");
    report(closed > 0 ? (double)(closed - opened) / 1e9 : 0, (double)(now - start) / 1e9);
    return 0;
}
