/* Makes system calls inside of a spark and prints how each ends: a line of name and errno, 0 if it succeeded.
 * Compiled by the tests, static, so that it runs from any root. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_open_tree_attr
#define SYS_open_tree_attr 467
#endif

static void say(const char *name, long result) {
    const char *text = result < 0 ? strerrorname_np(errno) : "0";
    printf("%s %s\n", name, text ? text : "?");
    fflush(stdout);
}

/* In a child, for what would change or end this process. */
static void child(const char *name, long (*call)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        say(name, call());
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status)) printf("%s signal%d\n", name, WTERMSIG(status));
}

static long unshare_user(void) { return unshare(CLONE_NEWUSER); }
static long unshare_mount(void) { return unshare(CLONE_NEWNS); }
static long clone_user(void) {
    long r = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (r == 0) _exit(0);
    return r;
}
static long clone3_user(void) {
    uint64_t args[11] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
    long r = syscall(SYS_clone3, args, sizeof args);
    if (r == 0) _exit(0);
    return r;
}
static long setns_init(void) {
    int fd = open("/proc/1/ns/mnt", O_RDONLY);
    return setns(fd < 0 ? 0 : fd, 0);
}
#ifdef __x86_64__
static long x32_getpid(void) { return syscall(0x40000000 | SYS_getpid); }
static long i386_getpid(void) {
    long r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(20) : "memory");
    if (r < 0) errno = -r;
    return r < 0 ? -1 : 0;
}
#endif

static long tty_ioctl(unsigned long command) {
    static const char letter = 'x';
    int fd = open("/dev/tty", O_RDWR);
    /* Without a terminal the filter answers as well: it looks at the command alone. */
    return syscall(SYS_ioctl, fd < 0 ? 0 : fd, command, &letter);
}

static void calls(void) {
    char zeros[4096] = {0};
    say("tiocsti", tty_ioctl(TIOCSTI));
    say("tiocsti-high-bits", tty_ioctl(0xdeadbeef00000000UL | TIOCSTI));
    say("tioclinux", tty_ioctl(TIOCLINUX));
    say("tioclinux-high-bits", tty_ioctl(0x100000000UL | TIOCLINUX));
    int root = open("/", O_RDONLY | O_DIRECTORY);
    struct { const char *name; unsigned long command; } btrfs[] = {
        {"btrfs-snap-create", _IOW(0x94, 1, zeros)}, {"btrfs-subvol-create", _IOW(0x94, 14, zeros)},
        {"btrfs-snap-destroy", _IOW(0x94, 15, zeros)}, {"btrfs-snap-create-v2", _IOW(0x94, 23, zeros)},
        {"btrfs-subvol-create-v2", _IOW(0x94, 24, zeros)}, {"btrfs-snap-destroy-v2", _IOW(0x94, 63, zeros)},
        {"btrfs-subvol-setflags", _IOW(0x94, 26, uint64_t)}, {"btrfs-default-subvol", _IOW(0x94, 19, uint64_t)},
        {"btrfs-tree-search", _IOWR(0x94, 17, zeros)}, {"btrfs-ino-lookup", _IOWR(0x94, 18, zeros)},
        {"btrfs-send", _IOW(0x94, 38, uint64_t[9])}, {"btrfs-received", _IOWR(0x94, 37, uint64_t[25])},
        {"btrfs-quota-ctl", _IOWR(0x94, 40, uint64_t[2])}, {"btrfs-encoded-read", _IOR(0x94, 64, uint64_t[16])},
        {"btrfs-snap-create-high-bits", 0xffffffff00000000UL | _IOW(0x94, 1, zeros)},
    };
    for (size_t i = 0; i < sizeof btrfs / sizeof *btrfs; i++)
        say(btrfs[i].name, syscall(SYS_ioctl, root, btrfs[i].command, zeros));
    say("io_uring_setup", syscall(SYS_io_uring_setup, 8, zeros));
    say("io_uring_enter", syscall(SYS_io_uring_enter, -1, 0, 0, 0, 0, 0));
    say("io_uring_register", syscall(SYS_io_uring_register, -1, 0, 0, 0));
    say("keyctl", syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 1));
    say("add_key", syscall(SYS_add_key, "user", "spark", "x", 1, KEY_SPEC_SESSION_KEYRING));
    say("request_key", syscall(SYS_request_key, "user", "spark", 0, 0));
    child("unshare-user", unshare_user);
    child("unshare-mount", unshare_mount);
    child("clone-user", clone_user);
    child("clone3-user", clone3_user);
    child("setns", setns_init);
#ifdef __x86_64__
    child("x32", x32_getpid);
    child("i386", i386_getpid);
#endif
    say("open_by_handle_at", syscall(SYS_open_by_handle_at, root, zeros, O_RDONLY));
    say("ptrace-init", ptrace(PTRACE_SEIZE, 1, 0, 0));
    struct iovec here = {zeros, 8}, there = {(void *)0x400000, 8};
    say("process_vm_readv-init", process_vm_readv(1, &here, 1, &there, 1, 0));
    int pidfd = syscall(SYS_pidfd_open, 1, 0);
    say("pidfd_getfd-init", syscall(SYS_pidfd_getfd, pidfd, 0, 0));
    say("socket-vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
    say("socket-alg", socket(38, SOCK_SEQPACKET, 0));
    /* IPX, RDS, CAN, TIPC, Bluetooth, RXRPC, IEEE 802.15.4, KCM, SMC, XDP, MCTP; and what no kernel has yet. */
    static const int families[] = {4, 21, 29, 30, 31, 33, 36, 41, 43, 44, 45, 63};
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) say("socket-other", socket(families[i], SOCK_DGRAM, 0));
    static const int usual[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK};
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++) say("socket-usual", socket(usual[i], SOCK_DGRAM, 0) < 0 ? -1 : 0);
    /* What the whole host has little of, and what makes others wait: leases of files, and of directories (since Linux 6.19). */
    say("mmap-huge", mmap(0, 2 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_HUGETLB, -1, 0) == MAP_FAILED ? -1 : 0);
    say("memfd-huge", syscall(SYS_memfd_create, "huge", 4));
    say("lease", syscall(SYS_fcntl, root, F_SETLEASE, F_RDLCK));
    say("lease-high-bits", syscall(SYS_fcntl, root, 0x100000000UL | F_SETLEASE, F_RDLCK));
    say("lease-of-directory", syscall(SYS_fcntl, root, 1040, zeros));
    static const int usual_fcntl[] = {F_GETFD, F_GETFL, F_DUPFD, F_DUPFD_CLOEXEC, F_GETLEASE};
    for (size_t i = 0; i < sizeof usual_fcntl / sizeof *usual_fcntl; i++) say("fcntl-usual", fcntl(root, usual_fcntl[i], 0) < 0 ? -1 : 0);
    int sealed = syscall(SYS_memfd_create, "small", 2);
    say("fcntl-usual", fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK));
    say("fcntl-usual", fcntl(sealed, F_GET_SEALS) < 0 ? -1 : 0);
    long context = 0;
    say("io_setup", syscall(SYS_io_setup, 128, &context));
    say("mount-tmpfs", mount("none", "/mnt", "tmpfs", 0, 0));
    say("mount-bind", mount("/", "/mnt", 0, MS_BIND, 0));
    say("remount-proc-sys", mount(0, "/proc/sys", 0, MS_REMOUNT | MS_BIND, 0));
    say("umount-masked", umount2("/proc/kcore", MNT_DETACH));
    say("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
    say("open_tree_attr", syscall(SYS_open_tree_attr, AT_FDCWD, "/", 1, 0, 0));
    say("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    say("move_mount", syscall(SYS_move_mount, root, "", AT_FDCWD, "/mnt", 4));
    say("mount_setattr", syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, zeros, 32));
    say("pivot_root", syscall(SYS_pivot_root, "/", "/mnt"));
    say("bpf", syscall(SYS_bpf, 0, zeros, 64));
    say("perf_event_open", syscall(SYS_perf_event_open, zeros, 0, -1, -1, 0));
    say("userfaultfd", syscall(SYS_userfaultfd, 0));
    say("fanotify_init", syscall(SYS_fanotify_init, 0, 0));
    say("kexec_load", syscall(SYS_kexec_load, 0, 0, 0, 0));
    say("init_module", syscall(SYS_init_module, zeros, 1, ""));
    say("reboot", syscall(SYS_reboot, 0, 0, 0, 0));
    say("swapon", syscall(SYS_swapon, "/none", 0));
    say("sethostname", sethostname("x", 1));
    say("syslog", syscall(SYS_syslog, 3, zeros, 16));
    struct timespec zero = {0};
    say("clock_settime", clock_settime(CLOCK_REALTIME, &zero));
    say("acct", syscall(SYS_acct, "/tmp/acct"));
    say("quotactl", syscall(SYS_quotactl, 0, 0, 0, 0));
}

static void make_node(const char *path, const char *number) {
    unsigned major = atoi(number), minor = atoi(strchr(number, ':') + 1);
    say("mknod", mknod(path, S_IFBLK | 0666, makedev(major, minor)));
    say("mknod-char", mknod(path, S_IFCHR | 0666, makedev(1, 1)));
}

/* Looks at every other process for as long as it is told to, and says what it could get hold of that is not of
 * this spark. `root` of a process of ours holds /spark-mark. */
static void watch(double seconds) {
    static const char *const links[] = {"exe", "root", "cwd", "fd/0", "fd/3", "fd/7", "ns/mnt"};
    struct timespec now, start;
    long looks = 0, seen = 0;
    char path[300], buffer[4096];
    pid_t self = getpid(), last = 0;
    clock_gettime(CLOCK_MONOTONIC, &start);
    puts("watching");
    fflush(stdout);
    for (;;) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec - start.tv_sec + (now.tv_nsec - start.tv_nsec) / 1e9 > seconds) break;
        DIR *dir = opendir("/proc");
        for (struct dirent *entry; (entry = readdir(dir));) {
            pid_t pid = atoi(entry->d_name);
            if (pid < 2 || pid == self || pid == getppid()) continue;
            looks++;
            if (pid != last) seen++, last = pid;
            for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
                snprintf(path, sizeof path, "/proc/%d/%s", pid, links[i]);
                ssize_t n = readlink(path, buffer, sizeof buffer - 1);
                if (n >= 0) {
                    buffer[n] = 0;
                    if (i == 0 && !strstr(buffer, "busybox") && !strstr(buffer, "probe"))
                        printf("reached %s -> %s\n", links[i], buffer);
                    if (i == 2 && buffer[0] != '/') printf("reached cwd -> %s\n", buffer);
                    if (i >= 4 && i < 6) printf("reached %s -> %s\n", links[i], buffer);
                }
            }
            snprintf(path, sizeof path, "/proc/%d/root", pid);
            int root = open(path, O_PATH | O_DIRECTORY);
            if (root >= 0) {
                if (faccessat(root, "spark-mark", F_OK, 0) < 0) printf("reached root\n");
                close(root);
            }
            snprintf(path, sizeof path, "/proc/%d/environ", pid);
            int environ = open(path, O_RDONLY);
            if (environ >= 0) {
                ssize_t n = read(environ, buffer, sizeof buffer - 1);
                if (n > 0 && memmem(buffer, n, "HOST_CANARY", 11)) printf("reached environ\n");
                close(environ);
            }
            /* Attached to, a process is asked what it is: one of this spark has its root. */
            if (ptrace(PTRACE_SEIZE, pid, 0, 0) == 0) {
                snprintf(path, sizeof path, "/proc/%d/exe", pid);
                ssize_t n = readlink(path, buffer, sizeof buffer - 1);
                if (n >= 0) {
                    buffer[n] = 0;
                    if (!strstr(buffer, "busybox") && !strstr(buffer, "probe")) printf("reached ptrace %s\n", buffer);
                }
                ptrace(PTRACE_INTERRUPT, pid, 0, 0);
                waitpid(pid, 0, __WALL);
                ptrace(PTRACE_DETACH, pid, 0, 0);
            }
            struct iovec here = {buffer, 8}, there = {(void *)0x400000, 8};
            if (process_vm_readv(pid, &here, 1, &there, 1, 0) > 0 && memcmp(buffer, "\177ELF", 4) != 0)
                printf("reached memory\n");
            int pidfd = syscall(SYS_pidfd_open, pid, 0);
            if (pidfd >= 0) {
                if (syscall(SYS_pidfd_getfd, pidfd, 3, 0) >= 0) printf("reached pidfd_getfd\n");
                close(pidfd);
            }
        }
        closedir(dir);
    }
    printf("looks %ld seen %ld\n", looks, seen);
}

/* Loaded into another program, which is in /proc/self/exe then. */
static void interpreted(void) {
    char exe[4096];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n < 0 ? 0 : n] = 0;
    printf("exe %s\n", exe);
    say("write-exe", open("/proc/self/exe", O_WRONLY));
    int fd = open("/proc/self/exe", O_RDONLY);
    say("chmod-exe", fchmod(fd, 0777));
    say("truncate-exe", truncate("/proc/self/exe", 0));
}

#ifdef PRELOAD
__attribute__((constructor)) static void loaded(void) {
    interpreted();
    _exit(0);
}
#endif

/* Sets flags on the standard streams, which all have who share these. */
static int set_flags(void) {
    int flags = O_NONBLOCK | O_ASYNC | O_APPEND;
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | flags) || (fcntl(fd, F_GETFL) & flags) != flags) return 1;
    return 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "calls")) calls();
    else if (!strcmp(what, "mknod")) make_node(argv[2], argv[3]);
    else if (!strcmp(what, "watch")) watch(atof(argv[2]));
    else if (!strcmp(what, "flags")) return set_flags();
    else if (!strcmp(what, "lock")) return flock(0, LOCK_EX | LOCK_NB) != 0;
    else if (!strcmp(what, "uid")) {
        /* Set-uid programs that want more than the effective id. */
        say("setuid", setuid(0));
        printf("%d %d\n", getuid(), geteuid());
    } else interpreted();
    return 0;
}
