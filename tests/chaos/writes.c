/* Preloaded, this stops a process after the n-th change below a storage that it and its relatives make: a file that gets its
   name, or that is deleted. Whoever waits for the file CHAOS_REACHED then kills them all, as a power cut does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REAL(function) ((__typeof__(&function))dlsym(RTLD_NEXT, #function))

/* One byte a change is appended to the file CHAOS_COUNT, whose length is the number of changes by all processes. */
static void count(const char *what, const char *path) {
    const char *storage = getenv("CHAOS_STORAGE"), *counted = getenv("CHAOS_COUNT"), *reached = getenv("CHAOS_REACHED");
    if (!storage || !counted || !reached || strncmp(path, storage, strlen(storage))) return;
    int file = open(counted, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (file < 0) return;
    long number = write(file, ".", 1) == 1 ? lseek(file, 0, SEEK_CUR) : 0;
    close(file);
    if (number != atol(getenv("CHAOS_NUMBER"))) return;
    char whole[PATH_MAX + 16], begun[PATH_MAX];
    snprintf(begun, sizeof begun, "%s.begun", reached);
    int length = snprintf(whole, sizeof whole, "%s %s\n", what, path + strlen(storage) + 1);
    int note = open(begun, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (note < 0 || write(note, whole, length) != length || close(note)) abort();
    REAL(rename)(begun, reached);
    raise(SIGSTOP);
}

int rename(const char *from, const char *to) {
    int failed = REAL(rename)(from, to);
    if (!failed) count("written", to);
    return failed;
}

#define COUNTED(function)                      \
    int function(const char *path) {           \
        int failed = REAL(function)(path);     \
        if (!failed) count("deleted", path);   \
        return failed;                         \
    }

COUNTED(unlink)
COUNTED(remove)
COUNTED(rmdir)

/* Of an open folder, as `shutil.rmtree` and pyarrow delete. */
int unlinkat(int folder, const char *name, int flags) {
    char link[64], path[PATH_MAX];
    ssize_t length = 0;
    if (folder != AT_FDCWD) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = readlink(link, path, sizeof path - strlen(name) - 2);
    }
    int failed = REAL(unlinkat)(folder, name, flags);
    if (failed) return failed;
    if (length > 0) {
        snprintf(path + length, sizeof path - length, "/%s", name);
        count("deleted", path);
    } else count("deleted", name);
    return failed;
}
