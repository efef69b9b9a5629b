/* Takes of something that the kernel counts for each user or for the whole host, as many as are asked for or, with 0, as many as there are. Prints
 * how many it took and why it got no more, and keeps them until its standard input ends.
 * Compiled by the tests, static, so that it runs from any root. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <mqueue.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long instance(void) { return inotify_init1(IN_CLOEXEC); }

/* Each timer has a signal of its own in reserve. */
static long pending(void) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    timer_t timer;
    return timer_create(CLOCK_MONOTONIC, &event, &timer);
}

static long queue(void) {
    static int number;
    char name[64];
    struct mq_attr attributes = {.mq_maxmsg = 10, .mq_msgsize = 8192};
    snprintf(name, sizeof name, "/taker-%d-%d", getpid(), number++);
    mqd_t made = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes);
    int failed = errno;
    if (made >= 0) mq_unlink(name);
    errno = failed;
    return made;
}

/* The kernel takes some milliseconds to close each. */
static long packet(void) { return socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0); }

static long terminal(void) { return open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC); }

static long locked(void) {
    int id = shmget(IPC_PRIVATE, 1 << 20, IPC_CREAT | 0600);
    if (id < 0) return -1;
    long done = shmctl(id, SHM_LOCK, 0);
    int failed = errno;
    /* It goes when this process ends, not before. */
    if (done == 0) shmat(id, 0, 0);
    shmctl(id, IPC_RMID, 0);
    errno = failed;
    return done;
}

/* What is compared with a limit of the process gets one that is soon reached, the same inside and outside. */
static void limit(int resource, rlim_t most) {
    struct rlimit limit;
    getrlimit(resource, &limit);
    if (limit.rlim_max < most) most = limit.rlim_max;
    limit.rlim_cur = most;
    setrlimit(resource, &limit);
}

int main(int argc, char **argv) {
    static const struct { const char *name; long (*take)(void); } kinds[] = {
        {"inotify", instance}, {"signals", pending}, {"queues", queue}, {"locked", locked}, {"terminals", terminal},
        {"packets", packet},
    };
    /* Who has these is not limited. */
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0}};
    if (argc != 3) return 2;
    /* Packet sockets need one, and are not limited. */
    if (strcmp(argv[1], "packets") != 0 && syscall(SYS_capset, &header, none) != 0) return 2;
    limit(RLIMIT_SIGPENDING, 2000);
    limit(RLIMIT_MSGQUEUE, 400000);
    limit(RLIMIT_MEMLOCK, 4 << 20);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(kinds[i].name, argv[1]) != 0) continue;
        long most = atol(argv[2]), count = 0;
        errno = 0;
        while ((most == 0 || count < most) && kinds[i].take() >= 0) count++;
        printf("%ld %s\n", count, strerrorname_np(errno));
        fflush(stdout);
        char end;
        while (read(0, &end, 1) > 0) {}
        return 0;
    }
    return 2;
}
