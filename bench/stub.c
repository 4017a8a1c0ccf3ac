/* An upstream that costs almost nothing: OpenAI chat completions over HTTP/1.1 with keep-alive.
 *
 *     stub LIFE_S          listens on a free loopback port, prints it, ends after LIFE_S seconds
 *
 * The request's model says what the answer looks like, as shape-chunks-gap-fault:
 *
 *     each-20              20 events, one write for each, as fast as the socket takes them
 *     once-20              the head and all events in one write
 *     paced-400-50         400 events, one every 50 ms
 *     idle-4-8000          half of the events at once, the others after 8,000 ms
 *     json                 a small answer that is not streamed
 *
 * A fault makes the answer wrong on purpose, to prove that the load client notices: skip (a number
 * is left out), twice (an event is repeated), alien (an event of another answer), mute (no [DONE]),
 * cut (the connection ends in the middle), fail (status 500).
 *
 * One thread, edge-triggered epoll, and one heap of the connections that go on at a later moment.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "answer.h"

enum {
    REQUEST_MAX = 8192,
    WRITE_MAX = 65536,    /* what `once` gathers for one write */
    WRITES_A_TURN = 32,   /* then the other connections have their turn */
    CONNECTIONS_MAX = 8192,
    CHUNKS_MAX = 1000000,
};

#define HEAD                                                           \
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"           \
    "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
#define LAST_CHUNK "0\r\n\r\n"
#define MODELS                                                                       \
    "{\"object\":\"list\",\"data\":[{\"id\":\"tide\",\"object\":\"model\","          \
    "\"created\":1790000000,\"owned_by\":\"bench\"}]}"

enum shape { EACH, ONCE, PACED, IDLE };
enum fault { RIGHT, SKIP, TWICE, ALIEN, MUTE, CUT };

struct connection {
    int fd;              /* -1 once closed; the heap frees it when it comes up there */
    bool is_scheduled;   /* the heap holds it */
    bool is_answering;
    enum shape shape;
    enum fault fault;
    int chunks;
    int place;           /* of the next event; -1 before the head, `chunks` before [DONE] */
    uint64_t gap_ns;
    uint64_t due_ns;
    char owner[OWNER_WIDTH];
    char *unsent;        /* what the socket did not take */
    size_t unsent_length;
    size_t request_length;
    char request[REQUEST_MAX];
};

static struct event events[KINDS];
static struct connection *heap[CONNECTIONS_MAX];
static int heap_size;
static int connections;
static int poller;

/* --- the heap: the connection that is due first is on top ----------------------------------- */

static void schedule(struct connection *c, uint64_t due_ns)
{
    if (c->is_scheduled)
        return;
    c->due_ns = due_ns;
    c->is_scheduled = true;
    int at = heap_size++;
    for (; at > 0 && heap[(at - 1) / 2]->due_ns > due_ns; at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = c;
}

static struct connection *take_due(uint64_t now)
{
    if (heap_size == 0 || heap[0]->due_ns > now)
        return NULL;
    struct connection *due = heap[0], *last = heap[--heap_size];
    int at = 0;
    for (;;) {
        int child = 2 * at + 1;
        if (child >= heap_size)
            break;
        if (child + 1 < heap_size && heap[child + 1]->due_ns < heap[child]->due_ns)
            child++;
        if (heap[child]->due_ns >= last->due_ns)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    due->is_scheduled = false;
    return due;
}

/* --- an answer ---------------------------------------------------------------------------------- */

static void close_connection(struct connection *c)
{
    close(c->fd);
    c->fd = -1;
    c->is_answering = false;
    free(c->unsent);
    c->unsent = NULL;
    schedule(c, 0); /* Callers may still look at it; the main loop frees it. */
}

/* Write, and keep what the socket did not take. False when the connection is gone or full. */
static bool send_bytes(struct connection *c, const char *bytes, size_t length)
{
    ssize_t sent = send(c->fd, bytes, length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        close_connection(c);
        return false;
    }
    if (sent < 0)
        sent = 0;
    if ((size_t)sent == length)
        return true;
    c->unsent_length = length - (size_t)sent;
    c->unsent = malloc(c->unsent_length);
    if (c->unsent == NULL)
        abort();
    memcpy(c->unsent, bytes + sent, c->unsent_length);
    return false;
}

/* What the socket did not take earlier. True when all of it is gone. */
static bool send_unsent(struct connection *c)
{
    while (c->unsent != NULL) {
        ssize_t sent = send(c->fd, c->unsent, c->unsent_length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            return false;
        if (sent < 0) {
            close_connection(c);
            return false;
        }
        c->unsent_length -= (size_t)sent;
        memmove(c->unsent, c->unsent + sent, c->unsent_length);
        if (c->unsent_length == 0) {
            free(c->unsent);
            c->unsent = NULL;
        }
    }
    return true;
}

/* The event at the connection's place, as one HTTP chunk. Returns its length. */
static size_t put_event(const struct connection *c, char *to)
{
    const struct event *event = &events[kind_at(c->place, c->chunks)];
    char *start = to + sprintf(to, "%x\r\n", (unsigned)event->length);
    memcpy(start, event->bytes, (size_t)event->length);
    memcpy(start + OWNER_AT, c->owner, OWNER_WIDTH);
    put_digits(start + STAMP_AT, STAMP_WIDTH, now_ns());
    if (event == &events[TEXT])
        put_digits(start + NUMBER_AT, NUMBER_WIDTH, (uint64_t)c->place);
    memcpy(start + event->length, "\r\n", 2);
    return (size_t)(start - to) + (size_t)event->length + 2;
}

/* The next piece of the answer: its head, one event, or its end. Returns its length. */
static size_t put_piece(struct connection *c, char *to)
{
    if (c->place < 0) {
        c->place = 0;
        memcpy(to, HEAD, sizeof HEAD - 1);
        return sizeof HEAD - 1;
    }
    if (c->place < c->chunks) {
        bool is_faulty = c->fault != RIGHT && c->place == c->chunks / 2;
        if (is_faulty && c->fault == SKIP)
            c->place++;
        if (is_faulty && c->fault == ALIEN)
            c->owner[0] ^= 1;
        size_t length = put_event(c, to);
        if (is_faulty && c->fault == TWICE)
            length += put_event(c, to + length);
        if (is_faulty && c->fault == ALIEN)
            c->owner[0] ^= 1;
        c->place++;
        return length;
    }
    c->is_answering = false;
    if (c->fault == MUTE) {
        memcpy(to, LAST_CHUNK, sizeof LAST_CHUNK - 1);
        return sizeof LAST_CHUNK - 1;
    }
    return (size_t)sprintf(to, "%x\r\n" DONE_EVENT "\r\n" LAST_CHUNK,
                           (unsigned)(sizeof DONE_EVENT - 1));
}

/* The connection is to end here, in the middle of the answer. */
static bool is_cut(const struct connection *c)
{
    return c->fault == CUT && c->place > c->chunks / 2;
}

/* How long to wait before the next piece. */
static uint64_t gap_before(const struct connection *c)
{
    if (c->shape == PACED && c->place > 0 && c->place < c->chunks)
        return c->gap_ns;
    if (c->shape == IDLE && c->place == c->chunks / 2)
        return c->gap_ns;
    return 0;
}

/* Write until the socket is full, the pace says wait, the turn is over or the answer complete. */
static void go_on(struct connection *c, uint64_t now)
{
    static char pieces[WRITE_MAX + 3 * EVENT_MAX];

    if (!send_unsent(c))
        return;
    for (int writes = 0; c->is_answering; writes++) {
        if (writes == WRITES_A_TURN)
            c->due_ns = now + 1;
        if (c->due_ns > now) {
            schedule(c, c->due_ns);
            return;
        }
        size_t length = put_piece(c, pieces);
        while (c->shape == ONCE && c->is_answering && !is_cut(c) && length < WRITE_MAX)
            length += put_piece(c, pieces + length);
        c->due_ns += gap_before(c); /* So a late event does not delay those after it. */
        if (!send_bytes(c, pieces, length))
            return;
        if (is_cut(c))
            close_connection(c);
    }
}

/* --- a request ---------------------------------------------------------------------------------- */

static void send_plain(struct connection *c, const char *status, const char *body, size_t length)
{
    char answer[2048];
    int head = snprintf(answer, sizeof answer,
                        "HTTP/1.1 %s\r\nContent-Type: application/json\r\n"
                        "Content-Length: %zu\r\n\r\n",
                        status, length);
    memcpy(answer + head, body, length);
    send_bytes(c, answer, (size_t)head + length);
}

/* The text behind `key` in the body, or NULL. */
static const char *find_value(const char *body, const char *key)
{
    const char *at = strstr(body, key);
    if (at == NULL)
        return NULL;
    at += strlen(key);
    at += strspn(at, " :");
    return *at == '"' ? at + 1 : NULL;
}

/* Begin the answer that the body asks for. */
static void begin_answer(struct connection *c, const char *body, uint64_t now)
{
    char shape[8] = "", fault[8] = "";
    int chunks = 0, gap_ms = 0;
    const char *model = find_value(body, "\"model\"");
    const char *owner = find_value(body, "\"content\""); /* The first message begins with it. */
    if (model == NULL || owner == NULL || strlen(owner) < OWNER_WIDTH) {
        send_plain(c, "400 Bad Request", "{}", 2);
        return;
    }
    sscanf(model, "%7[a-z]-%d-%d-%7[a-z]", shape, &chunks, &gap_ms, fault);
    if (strcmp(fault, "fail") == 0) {
        send_plain(c, "500 Internal Server Error", "{}", 2);
        return;
    }
    memcpy(c->owner, owner, OWNER_WIDTH);
    if (strcmp(shape, "json") == 0) {
        char plain[] = PLAIN_START OWNER_ZERO PLAIN_REST;
        memcpy(plain + PLAIN_OWNER_AT, owner, OWNER_WIDTH);
        send_plain(c, "200 OK", plain, sizeof plain - 1);
        return;
    }
    static const char *const shapes[] = {"each", "once", "paced", "idle"};
    static const char *const faults[] = {"", "skip", "twice", "alien", "mute", "cut"};
    bool is_known = false;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strcmp(shape, shapes[i]) == 0) {
            c->shape = (enum shape)i;
            is_known = true;
        }
    c->fault = RIGHT;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        if (strcmp(fault, faults[i]) == 0)
            c->fault = (enum fault)i;
    if (!is_known || chunks < 3 || chunks > CHUNKS_MAX || gap_ms < 0) {
        send_plain(c, "404 Not Found", "{}", 2);
        return;
    }
    c->chunks = chunks;
    c->gap_ns = (uint64_t)gap_ms * 1000000u;
    c->place = -1;
    c->is_answering = true;
    c->due_ns = now;
    go_on(c, now);
}

/* Answer the request in the buffer if all of it is there. */
static void take_request(struct connection *c, uint64_t now)
{
    c->request[c->request_length] = '\0';
    char *end = strstr(c->request, "\r\n\r\n");
    if (end == NULL) {
        if (c->request_length == REQUEST_MAX - 1)
            close_connection(c);
        return;
    }
    *end = '\0';
    const char *announced = strcasestr(c->request, "\r\ncontent-length:");
    size_t body_length = announced == NULL ? 0 : strtoul(announced + 17, NULL, 10);
    *end = '\r';
    size_t whole = (size_t)(end + 4 - c->request) + body_length;
    if (whole > REQUEST_MAX - 1) {
        close_connection(c);
        return;
    }
    if (c->request_length < whole)
        return;
    c->request_length = 0; /* A client that waits for its answer never sends two at once. */
    if (strncmp(c->request, "POST ", 5) == 0)
        begin_answer(c, end + 4, now);
    else if (strncmp(c->request, "GET /v1/models ", 15) == 0)
        send_plain(c, "200 OK", MODELS, sizeof MODELS - 1);
    else
        send_plain(c, "404 Not Found", "{}", 2);
}

static void read_request(struct connection *c, uint64_t now)
{
    size_t space = REQUEST_MAX - 1 - c->request_length;
    ssize_t got = recv(c->fd, c->request + c->request_length, space, 0);
    if (got > 0) {
        c->request_length += (size_t)got;
        take_request(c, now);
    } else if (got == 0 || errno != EAGAIN) {
        close_connection(c);
    }
}

static void accept_all(int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        if (connections == CONNECTIONS_MAX) {
            close(fd);
            continue;
        }
        connections++;
        struct connection *c = calloc(1, sizeof *c);
        if (c == NULL)
            abort();
        c->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        struct epoll_event interest = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                       .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &interest);
    }
}

static int listen_on_loopback(void)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, 4096) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0) {
        perror("stub");
        exit(1);
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 64;
    alarm((unsigned)atoi(argv[1]));
    make_events(events);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on_loopback();
    struct epoll_event interest = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &interest);
    for (;;) {
        struct epoll_event happened[256];
        struct timespec wait = {0}, *limit = NULL;
        uint64_t now = now_ns();
        if (heap_size > 0) {
            uint64_t wait_ns = heap[0]->due_ns > now ? heap[0]->due_ns - now : 0;
            wait.tv_sec = (time_t)(wait_ns / 1000000000u);
            wait.tv_nsec = (long)(wait_ns % 1000000000u);
            limit = &wait;
        }
        int count = epoll_pwait2(poller, happened, 256, limit, NULL);
        now = now_ns();
        for (int i = 0; i < count; i++) {
            struct connection *c = happened[i].data.ptr;
            if (c == NULL)
                accept_all(listener);
            else {
                if (happened[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                    close_connection(c);
                else if (happened[i].events & EPOLLIN)
                    read_request(c, now);
                if (c->unsent != NULL)
                    go_on(c, now);
            }
        }
        struct connection *due;
        while ((due = take_due(now)) != NULL) {
            if (due->fd >= 0) {
                go_on(due, now);
            } else {
                free(due);
                connections--;
            }
        }
    }
}
