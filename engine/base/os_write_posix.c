/* Writing, over POSIX. */
#define _DEFAULT_SOURCE
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/os_write.h"

enum { PATH_ROOM = 4352 };

static qe_status fail(const char *path, const char *what, int number, qe_error *err) {
    char reason[128];
    if (strerror_r(number, reason, sizeof reason)) snprintf(reason, sizeof reason, "error %d", number);
    return qe_error_at(err, QE_E_IO, path, -1, "cannot %s: %s", what, reason);
}

qe_status qe_os_create(const char *path, bool keep, int *fd, qe_error *err) {
    *fd = open(path, O_RDWR | O_CLOEXEC | (keep ? 0 : O_CREAT | O_TRUNC), 0644);
    return *fd < 0 ? fail(path, keep ? "open" : "create", errno, err) : QE_OK;
}

qe_status qe_os_write(int fd, const char *path, uint64_t offset, const void *data, size_t bytes, qe_error *err) {
    const char *p = data;
    while (bytes) {
        ssize_t wrote = pwrite(fd, p, bytes, (off_t)offset);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return fail(path, "write", wrote ? errno : ENOSPC, err);
        p += wrote;
        bytes -= (size_t)wrote;
        offset += (uint64_t)wrote;
    }
    return QE_OK;
}

qe_status qe_os_read_back(int fd, const char *path, uint64_t offset, void *data, size_t bytes, qe_error *err) {
    char *p = data;
    while (bytes) {
        ssize_t got = pread(fd, p, bytes, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail(path, "read", errno, err);
        if (!got) return qe_error_at(err, QE_E_TRUNCATED, path, (int64_t)offset, "the file ends here");
        p += got;
        bytes -= (size_t)got;
        offset += (uint64_t)got;
    }
    return QE_OK;
}

qe_status qe_os_reserve(int fd, const char *path, uint64_t bytes, qe_error *err) {
    int number;
    if (!bytes) return QE_OK;
    do number = posix_fallocate(fd, 0, (off_t)bytes);
    while (number == EINTR);
    /* Some file systems cannot reserve: then writing finds out. */
    if ((number == EOPNOTSUPP || number == EINVAL) && !ftruncate(fd, (off_t)bytes)) return QE_OK;
    return number ? fail(path, "reserve space", number, err) : QE_OK;
}

qe_status qe_os_sync(int fd, const char *path, qe_error *err) {
    while (fsync(fd))
        if (errno != EINTR) return fail(path, "write to disk", errno, err);
    return QE_OK;
}

uint64_t qe_os_file_bytes(int fd) {
    struct stat info;
    return fstat(fd, &info) || info.st_size < 0 ? 0 : (uint64_t)info.st_size;
}

void qe_os_write_close(int fd) {
    if (fd >= 0) close(fd);
}

qe_status qe_os_make_folder(const char *path, qe_error *err) {
    if (!mkdir(path, 0755)) return QE_OK;
    if (errno == EEXIST) return qe_error_at(err, QE_E_STATE, path, -1, "is there already");
    return fail(path, "create", errno, err);
}

qe_status qe_os_sync_folder(const char *path, qe_error *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fail(path, "open", errno, err);
    qe_status status = qe_os_sync(fd, path, err);
    close(fd);
    return status;
}

static void parent_of(const char *path, char parent[PATH_ROOM]) {
    snprintf(parent, PATH_ROOM, "%s", path);
    char *slash = strrchr(parent, '/');
    if (!slash) snprintf(parent, PATH_ROOM, ".");
    else slash[slash == parent] = 0;
}

qe_status qe_os_rename(const char *from, const char *to, qe_error *err) {
    char parent[PATH_ROOM];
    if (rename(from, to)) return fail(to, "rename into place", errno, err);
    parent_of(to, parent);
    return qe_os_sync_folder(parent, err);
}

qe_status qe_os_replace(const char *path, const char *fresh, const void *data, size_t bytes, qe_error *err) {
    int fd;
    qe_status status = qe_os_create(fresh, false, &fd, err);
    if (!status) {
        status = qe_os_write(fd, fresh, 0, data, bytes, err);
        if (!status) status = qe_os_sync(fd, fresh, err);
        qe_os_write_close(fd);
        if (!status) status = qe_os_rename(fresh, path, err);
        if (status) qe_os_remove(fresh);
    }
    return status;
}

qe_status qe_os_lock_folder(const char *path, int *fd, qe_error *err) {
    char parent[PATH_ROOM];
    parent_of(path, parent);
    *fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0) return fail(parent, "open", errno, err);
    int code;
    do code = flock(*fd, LOCK_EX);
    while (code && errno == EINTR);
    if (code) {
        close(*fd);
        *fd = -1;
    }
    return QE_OK;
}

uint64_t qe_os_unique(void) {
    static atomic_uint next;
    return (uint64_t)getpid() << 32 | atomic_fetch_add(&next, 1);
}

bool qe_os_exists(const char *path) {
    struct stat info;
    return !lstat(path, &info);
}

void qe_os_remove(const char *path) {
    DIR *folder = opendir(path);
    if (!folder) {
        unlink(path);
        return;
    }
    char name[PATH_ROOM];
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if ((size_t)snprintf(name, sizeof name, "%s/%s", path, entry->d_name) < sizeof name) unlink(name);
    }
    closedir(folder);
    rmdir(path);
}
