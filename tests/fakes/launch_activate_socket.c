/* What a job finds in the system library of a Mac and not on Linux. It is preloaded.
 *
 * launch_activate_socket asks the stand-in, whose socket $LAUNCHD_STANDIN names, and gets
 * descriptors as launchd would hand them over: inheritable, in memory that is the caller's to free.
 * getppid tells a job that its parent is process 1, for that is what launchd is.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define MOST 16

pid_t getppid(void) {
    pid_t parent = syscall(SYS_getppid);
    const char *launchd = getenv("LAUNCHD_STANDIN_PID");
    return launchd != NULL && atoi(launchd) == parent ? 1 : parent;
}

static int ask(int sock, const char *name, int **fds, size_t *count) {
    char line[256], room[CMSG_SPACE(MOST * sizeof(int))];
    int error = EIO;
    struct iovec data = {&error, sizeof error};
    struct msghdr message = {0};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = room;
    message.msg_controllen = sizeof room;
    int length = snprintf(line, sizeof line, "activate %s\n", name);
    if (length < 0 || write(sock, line, (size_t)length) != length) return EIO;
    if (recvmsg(sock, &message, 0) != sizeof error) return EIO;
    if (error != 0) return error;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header == NULL || header->cmsg_type != SCM_RIGHTS) return EIO;
    size_t bytes = header->cmsg_len - CMSG_LEN(0);
    *fds = malloc(bytes);
    if (*fds == NULL) return ENOMEM;
    memcpy(*fds, CMSG_DATA(header), bytes);
    *count = bytes / sizeof(int);
    return 0;
}

int launch_activate_socket(const char *name, int **fds, size_t *count) {
    const char *path = getenv("LAUNCHD_STANDIN");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (path == NULL || strlen(path) >= sizeof address.sun_path) return ESRCH;
    strcpy(address.sun_path, path);
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (sock < 0) return errno;
    int error = ESRCH;
    if (connect(sock, (struct sockaddr *)&address, sizeof address) == 0)
        error = ask(sock, name, fds, count);
    close(sock);
    return error;
}
