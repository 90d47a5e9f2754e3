/* Faults at chosen file operations of a process, by LD_PRELOAD: each call that touches a file or directory below a scope
 * counts, and the one of a chosen number ends the process before, after or in the middle of it, fails with a chosen
 * error, or writes only a half. Unlike a tracer it can make a real short write, and costs microseconds.
 *
 * A plan is set by `faults_arm`, or by the environment variable FAULTS for a command of many processes:
 * what:at:error:kinds:flags:board:scope. The board is a file that is mapped: the number of calls so far, the number of
 * strikes, and the calls themselves, one line each.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { REST, RECORD, KILL_BEFORE, KILL_AFTER, KILL_MIDDLE, FAIL_ONCE, FAIL_ON, SHORT_WRITE };
enum { OPEN = 1, CREATE = 2, WRITE = 4, SYNC = 8, NAME = 16, REMOVE = 32, CLOSE = 64, READ = 128, LOCK = 256, LIST = 512, ALLOCATE = 1024 };
enum { WITHOUT_UNNAMED = 1, WITHOUT_LINKS = 2, FIRST_THREAD = 4, OTHER_THREADS = 8 };
enum { GO_ON, STRUCK, HALF };

struct board {
    atomic_int calls, strikes, written;
    char text[(1 << 20) - 12];
};

static struct {
    int what, at, error, kinds, flags;
    struct board *board;
    size_t length;
    char scope[PATH_MAX];
} plan;
static __thread int resting, dying;

void faults_arm(int what, int at, int error, int kinds, int flags, const char *board, const char *scope)
{
    plan.what = REST;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, board, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || syscall(SYS_ftruncate, fd, sizeof *plan.board) < 0)
        abort();
    plan.board = mmap(NULL, sizeof *plan.board, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (plan.board == MAP_FAILED)
        abort();
    plan.at = at, plan.error = error, plan.kinds = kinds, plan.flags = flags;
    plan.length = strlen(scope);
    memcpy(plan.scope, scope, plan.length + 1);
    plan.what = what;
}

/* For the victim's own book-keeping: nothing counts in this thread while it rests. */
void faults_rest(int rest) { resting = rest; }

__attribute__((constructor)) static void from_environment(void)
{
    const char *asked = getenv("FAULTS");
    int what, at, error, kinds, flags, used = 0;
    char board[PATH_MAX];
    if (asked && sscanf(asked, "%d:%d:%d:%d:%d:%4095[^:]:%n", &what, &at, &error, &kinds, &flags, board, &used) == 6 && used)
        faults_arm(what, at, error, kinds, flags, board, asked + used);
}

static int below(const char *path) { return !strncmp(path, plan.scope, plan.length) && strchr("/", path[plan.length]); }

static int path_of(int fd, char *into)
{
    char link[40];
    snprintf(link, sizeof link, fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", fd);
    ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, into, PATH_MAX - 1);
    into[size < 0 ? 0 : size] = 0;
    return size > 0;
}

/* Whether (directory, name) or, without a name, a descriptor lies in the scope. */
static int concerns(int directory, const char *name, char *into)
{
    if (name && name[0] == '/')
        snprintf(into, PATH_MAX, "%s", name);
    else if (!path_of(directory, into))
        return 0;
    if (!below(into))
        return 0;
    if (name && name[0] != '/') {
        size_t used = strlen(into);
        snprintf(into + used, PATH_MAX - used, "/%s", name);
    }
    return 1;
}

static void note(const char *call, int kind, const char *path, int struck)
{
    char line[PATH_MAX + 100];
    int size = snprintf(line, sizeof line, "%ld\t%s\t%d\t%d\t%s\n", syscall(SYS_gettid), call, kind, struck, path + plan.length);
    int at = atomic_fetch_add(&plan.board->written, size);
    if (at + size < (int)sizeof plan.board->text)
        memcpy(plan.board->text + at, line, (size_t)size);
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static int is_chosen_thread(void)
{
    int first = syscall(SYS_gettid) == getpid();
    return !(plan.flags & FIRST_THREAD && !first) && !(plan.flags & OTHER_THREADS && first);
}

/* What is to happen to this call; sets errno where it shall fail. */
static int strike(const char *call, int kind, int directory, const char *name)
{
    char path[PATH_MAX];
    dying = 0;
    if (plan.what == REST || resting || !concerns(directory, name, path))
        return GO_ON;
    int counts = is_chosen_thread();
    int number = counts ? atomic_fetch_add(&plan.board->calls, 1) + 1 : atomic_load(&plan.board->calls);
    /* What lasts, lasts for every thread, whoever reached it. */
    int reached = plan.what == FAIL_ON ? number >= plan.at && plan.kinds & kind : counts && number == plan.at;
    if (!counts && !reached)
        return GO_ON;
    int struck = plan.what != RECORD && reached;
    note(call, kind, path, struck);
    if (!struck)
        return GO_ON;
    atomic_fetch_add(&plan.board->strikes, 1);
    switch (plan.what) {
    case KILL_BEFORE: die(); return STRUCK;
    case KILL_AFTER: dying = 1; return GO_ON;
    case KILL_MIDDLE: dying = 1; return HALF;
    case SHORT_WRITE: return HALF;
    default: errno = plan.error; return STRUCK;
    }
}

static inline long done(long result)
{
    int error = errno;
    if (dying)
        die();
    errno = error;
    return result;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int kind_of_open(int flags) { return flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY)) ? CREATE : OPEN; }

static int refuses_unnamed(int directory, const char *name, int flags)
{
    char path[PATH_MAX];
    return plan.flags & WITHOUT_UNNAMED && (flags & O_TMPFILE) == O_TMPFILE && concerns(directory, name, path);
}

#define OPENS(symbol)                                                                                                  \
    int symbol(const char *path, int flags, ...)                                                                       \
    {                                                                                                                  \
        REAL(symbol);                                                                                                  \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t mode = va_arg(more, mode_t);                                                                            \
        va_end(more);                                                                                                  \
        if (refuses_unnamed(AT_FDCWD, path, flags))                                                                    \
            return errno = EOPNOTSUPP, -1;                                                                             \
        return strike("open", kind_of_open(flags), AT_FDCWD, path) ? -1 : (int)done(real(path, flags, mode));          \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(symbol)                                                                                               \
    int symbol(int directory, const char *path, int flags, ...)                                                        \
    {                                                                                                                  \
        REAL(symbol);                                                                                                  \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t mode = va_arg(more, mode_t);                                                                            \
        va_end(more);                                                                                                  \
        if (refuses_unnamed(directory, path, flags))                                                                   \
            return errno = EOPNOTSUPP, -1;                                                                             \
        return strike("open", kind_of_open(flags), directory, path) ? -1 : (int)done(real(directory, path, flags, mode)); \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

static size_t half(size_t size) { return size > 1 ? size / 2 : size; }

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write);
    int how = strike("write", WRITE, fd, NULL);
    return how == STRUCK ? -1 : done(real(fd, data, how == HALF ? half(size) : size));
}

#define PWRITES(symbol)                                                                                                \
    ssize_t symbol(int fd, const void *data, size_t size, off64_t at)                                                  \
    {                                                                                                                  \
        REAL(symbol);                                                                                                  \
        int how = strike("pwrite", WRITE, fd, NULL);                                                                   \
        return how == STRUCK ? -1 : done(real(fd, data, how == HALF ? half(size) : size, at));                         \
    }
PWRITES(pwrite)
PWRITES(pwrite64)

ssize_t read(int fd, void *data, size_t size)
{
    REAL(read);
    return strike("read", READ, fd, NULL) ? -1 : done(real(fd, data, size));
}

#define PREADS(symbol)                                                                                                 \
    ssize_t symbol(int fd, void *data, size_t size, off64_t at)                                                        \
    {                                                                                                                  \
        REAL(symbol);                                                                                                  \
        return strike("pread", READ, fd, NULL) ? -1 : done(real(fd, data, size, at));                                  \
    }
PREADS(pread)
PREADS(pread64)

#define ON_DESCRIPTOR(symbol, kind)                                                                                    \
    int symbol(int fd)                                                                                                 \
    {                                                                                                                  \
        REAL(symbol);                                                                                                  \
        return strike(#symbol, kind, fd, NULL) ? -1 : (int)done(real(fd));                                             \
    }
ON_DESCRIPTOR(fsync, SYNC)
ON_DESCRIPTOR(fdatasync, SYNC)

/* A close that fails has closed all the same (Linux): a network disk may say only here that the bytes did not fit. */
int close(int fd)
{
    REAL(close);
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY) /* nothing was written: nothing can be told */
        return real(fd);
    if (strike("close", CLOSE, fd, NULL) == STRUCK) {
        int error = errno;
        real(fd);
        errno = error;
        return -1;
    }
    return (int)done(real(fd));
}

int flock(int fd, int operation)
{
    REAL(flock);
    return strike("flock", LOCK, fd, NULL) ? -1 : (int)done(real(fd, operation));
}

#define TRUNCATES(symbol)                                                                                              \
    int symbol(int fd, off64_t size)                                                                                   \
    {                                                                                                                  \
        REAL(symbol);                                                                                                  \
        return strike("ftruncate", WRITE, fd, NULL) ? -1 : (int)done(real(fd, size));                                  \
    }
TRUNCATES(ftruncate)
TRUNCATES(ftruncate64)

#define ALLOCATES(symbol)                                                                                              \
    int symbol(int fd, off64_t at, off64_t size)                                                                       \
    {                                                                                                                  \
        REAL(symbol);                                                                                                  \
        return strike("posix_fallocate", ALLOCATE, fd, NULL) ? errno : (int)done(real(fd, at, size));                  \
    }
ALLOCATES(posix_fallocate)
ALLOCATES(posix_fallocate64)

int rename(const char *from, const char *to)
{
    REAL(rename);
    return strike("rename", NAME, AT_FDCWD, to) ? -1 : (int)done(real(from, to));
}

int renameat(int from_directory, const char *from, int directory, const char *to)
{
    REAL(renameat);
    return strike("rename", NAME, directory, to) ? -1 : (int)done(real(from_directory, from, directory, to));
}

static int refuses_links(int directory, const char *name)
{
    char path[PATH_MAX];
    return plan.flags & WITHOUT_LINKS && concerns(directory, name, path);
}

int link(const char *from, const char *to)
{
    REAL(link);
    if (refuses_links(AT_FDCWD, to))
        return errno = EPERM, -1;
    return strike("link", NAME, AT_FDCWD, to) ? -1 : (int)done(real(from, to));
}

int linkat(int from_directory, const char *from, int directory, const char *to, int flags)
{
    REAL(linkat);
    if (refuses_links(directory, to))
        return errno = EPERM, -1;
    return strike("link", NAME, directory, to) ? -1 : (int)done(real(from_directory, from, directory, to, flags));
}

int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    return strike("mkdir", NAME, AT_FDCWD, path) ? -1 : (int)done(real(path, mode));
}

int unlink(const char *path)
{
    REAL(unlink);
    return strike("unlink", REMOVE, AT_FDCWD, path) ? -1 : (int)done(real(path));
}

int unlinkat(int directory, const char *path, int flags)
{
    REAL(unlinkat);
    return strike("unlink", REMOVE, directory, path) ? -1 : (int)done(real(directory, path, flags));
}

int rmdir(const char *path)
{
    REAL(rmdir);
    return strike("rmdir", REMOVE, AT_FDCWD, path) ? -1 : (int)done(real(path));
}

DIR *opendir(const char *path)
{
    REAL(opendir);
    return strike("opendir", LIST, AT_FDCWD, path) ? NULL : real(path);
}

DIR *fdopendir(int fd)
{
    REAL(fdopendir);
    return strike("fdopendir", LIST, fd, NULL) ? NULL : real(fd);
}
