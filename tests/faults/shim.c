/* Faults on demand for the files of one folder: LD_PRELOAD, FAULT_FOLDER, and a control file FAULT_CONTROL
   that holds "fsync" or "read" while such calls shall fail with EIO. Each failed fsync appends a line with the
   process and the file's path to FAULT_LOG. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static ssize_t (*real_read)(int, void *, size_t);

static int is_ordered(const char *what) {
    char content[32] = {0};
    const char *path = getenv("FAULT_CONTROL");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return 0;
    ssize_t length = real_read(fd, content, sizeof content - 1);
    close(fd);
    return length > 0 && strncmp(content, what, strlen(what)) == 0;
}

static int is_ours(int fd, char *path, size_t size) {
    char link[64];
    const char *folder = getenv("FAULT_FOLDER");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, size - 1);
    if (length < 0 || !folder) return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

static void find(void) {
    if (!real_read) real_read = dlsym(RTLD_NEXT, "read");
}

static int flush(const char *name, int fd) {
    char path[4096];
    int (*real)(int) = dlsym(RTLD_NEXT, name);
    find();
    if (is_ours(fd, path, sizeof path) && is_ordered("fsync")) {
        int log = open(getenv("FAULT_LOG"), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
        if (log >= 0) {
            dprintf(log, "%d %s\n", getpid(), path);
            close(log);
        }
        errno = EIO;
        return -1;
    }
    return real(fd);
}

int fsync(int fd) { return flush("fsync", fd); }
int fdatasync(int fd) { return flush("fdatasync", fd); }

ssize_t read(int fd, void *buffer, size_t count) {
    char path[4096];
    find();
    if (is_ours(fd, path, sizeof path) && is_ordered("read")) {
        errno = EIO;
        return -1;
    }
    return real_read(fd, buffer, count);
}
