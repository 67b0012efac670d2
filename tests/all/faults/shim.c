// Makes a system call on something below FAULT_BELOW fail, or kills the process there, whoever makes the call: a filter
// of the kernel traps each call of the list, and the handler counts it and lets it pass or not. A libc in between would
// be passed by, as Rust's crates do. Set FAULT_KIND (full, denied, readonly, io, kill), FAULT_CALL (from 1; 0 is none),
// FAULT_STAYS (every later one fails too) and FAULT_LOG (a line for each call that counts: number, name, path).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <unistd.h>

enum { SPACE = 1, NAMES = 2, READS = 4 };  // takes space on the disk; changes a folder's names; neither

// Where the call's subject is: an open file in this argument, or a path in the last, below the folder of `folder`.
static const struct call { int number, file, folder, path, what; const char *name; } CALLS[] = {
    {SYS_write, 0, -1, -1, SPACE, "write"},       {SYS_pwrite64, 0, -1, -1, SPACE, "pwrite"},
    {SYS_writev, 0, -1, -1, SPACE, "writev"},     {SYS_pwritev, 0, -1, -1, SPACE, "pwritev"},
    {SYS_ftruncate, 0, -1, -1, SPACE, "truncate"}, {SYS_fallocate, 0, -1, -1, SPACE, "fallocate"},
    {SYS_copy_file_range, 2, -1, -1, SPACE, "copy"}, {SYS_sendfile, 0, -1, -1, SPACE, "sendfile"},
    {SYS_fsync, 0, -1, -1, SPACE, "fsync"},       {SYS_fdatasync, 0, -1, -1, SPACE, "fdatasync"},
    {SYS_open, -1, -1, 0, READS, "open"},         {SYS_openat, -1, 0, 1, READS, "open"},
    {SYS_mkdir, -1, -1, 0, SPACE | NAMES, "mkdir"}, {SYS_mkdirat, -1, 0, 1, SPACE | NAMES, "mkdir"},
    {SYS_rename, -1, -1, 0, SPACE | NAMES, "rename"}, {SYS_renameat, -1, 0, 1, SPACE | NAMES, "rename"},
    {SYS_renameat2, -1, 0, 1, SPACE | NAMES, "rename"}, {SYS_link, -1, -1, 0, SPACE | NAMES, "link"},
    {SYS_linkat, -1, 0, 1, SPACE | NAMES, "link"}, {SYS_rmdir, -1, -1, 0, NAMES, "rmdir"},
    {SYS_unlink, -1, -1, 0, NAMES, "unlink"},     {SYS_unlinkat, -1, 0, 1, NAMES, "unlink"},
    {SYS_chmod, -1, -1, 0, NAMES, "chmod"},       {SYS_fchmod, 0, -1, -1, NAMES, "chmod"},
    {SYS_fchmodat, -1, 0, 1, NAMES, "chmod"},
};
enum { COUNT = sizeof CALLS / sizeof *CALLS };

static const char *below;
static int kind, wanted, stays, log_file = -1;
static _Atomic int calls;

// The one place that the filter lets through.
long passed(long number, long a, long b, long c, long d, long e, long f);
extern char passed_from[];
__asm__(".text; passed: mov %rdi, %rax; mov %rsi, %rdi; mov %rdx, %rsi; mov %rcx, %rdx; mov %r8, %r10; mov %r9, %r8;"
        "mov 8(%rsp), %r9; syscall; passed_from: ret");

// What the call is about, if that lies below the folder.
static int subject(const struct call *call, const greg_t *arg, char *path, size_t room) {
    char link[64];
    const char *given = call->path < 0 ? "" : (const char *)arg[call->path];
    long file = call->file >= 0 ? arg[call->file] : call->folder >= 0 ? arg[call->folder] : AT_FDCWD;
    size_t length = 0;
    if (given[0] != '/') {
        if ((int)file < 0) return 0;
        snprintf(link, sizeof link, "/proc/self/fd/%d", (int)file);
        long got = passed(SYS_readlink, (long)link, (long)path, room / 2, 0, 0, 0);
        if (got < 0) return 0;
        length = got;
    }
    snprintf(path + length, room - length, "%s%s", length && given[0] ? "/" : "", given);
    return strncmp(path, below, strlen(below)) == 0;
}

static void trapped(int signal, siginfo_t *info, void *context) {
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs, *result = &r[REG_RAX];
    greg_t arg[6] = {r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9]};
    const struct call *call = CALLS;
    while (call->number != info->si_syscall) call++;
    int flags = call->number == SYS_open ? arg[1] : call->number == SYS_openat ? arg[2] : 0;
    int what = call->what;
    if (flags & O_CREAT) what = SPACE | NAMES;
    else if (what == READS && flags & (O_WRONLY | O_RDWR)) what = NAMES;
    int counted = kind == ENOSPC ? what & SPACE : kind == EACCES || kind == EROFS ? what & NAMES : 1;
    char path[8192];
    if (counted && subject(call, arg, path, sizeof path)) {
        int number = ++calls;
        if (log_file >= 0) {
            char line[8300];
            int length = snprintf(line, sizeof line, "%d %s %s\n", number, call->name, path);
            passed(SYS_write, log_file, (long)line, length, 0, 0, 0);
        }
        if (wanted && (number == wanted || (stays && number > wanted))) {
            if (kind == SIGKILL << 16) passed(SYS_kill, getpid(), SIGKILL, 0, 0, 0, 0);
            // The last bytes that a disk takes before it is full.
            int half = stays && number == wanted && call->number == SYS_write && arg[2] > 1;
            *result = half ? passed(SYS_write, arg[0], arg[1], arg[2] / 2, 0, 0, 0) : -kind;
            return;
        }
    }
    *result = passed(info->si_syscall, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
}

__attribute__((constructor)) static void start(void) {
    const char *name = getenv("FAULT_KIND"), *log = getenv("FAULT_LOG");
    below = getenv("FAULT_BELOW");
    wanted = atoi(getenv("FAULT_CALL"));
    stays = getenv("FAULT_STAYS") != NULL;
    kind = !strcmp(name, "full") ? ENOSPC : !strcmp(name, "denied") ? EACCES : !strcmp(name, "readonly") ? EROFS
        : !strcmp(name, "io") ? EIO : SIGKILL << 16;
    if (log) log_file = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    unsetenv("LD_PRELOAD");
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSYS, &action, NULL);

    unsigned long from = (unsigned long)passed_from;
    struct sock_filter code[COUNT + 8] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)from, 0, 2),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)(from >> 32), COUNT + 1, 0),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    for (int i = 0; i < COUNT; i++)
        code[5 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CALLS[i].number, COUNT - i, 0);
    code[5 + COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[6 + COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    struct sock_fprog program = {.len = COUNT + 7, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("seccomp");
        _exit(99);
    }
}
