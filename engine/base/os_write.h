/* base/os_write.h -- the part of the operating system's floor that changes files. Every failure is QE_E_IO with the path and
 * the system's own words ("No space left on device"). */
#ifndef QE_BASE_OS_WRITE_H
#define QE_BASE_OS_WRITE_H
#include <stdbool.h>
#include <qengine/base.h>

/* Create (or, with `keep`, open) a file for reading and writing. *fd is closed with qe_os_write_close(). */
qe_status qe_os_create(const char *path, bool keep, int *fd, qe_error *err);
qe_status qe_os_write(int fd, const char *path, uint64_t offset, const void *data, size_t bytes, qe_error *err);
/* Short reads at the end are QE_E_TRUNCATED. */
qe_status qe_os_read_back(int fd, const char *path, uint64_t offset, void *data, size_t bytes, qe_error *err);
/* The file has `bytes`, and the disk has room for them: a full disk is found now. */
qe_status qe_os_reserve(int fd, const char *path, uint64_t bytes, qe_error *err);
qe_status qe_os_sync(int fd, const char *path, qe_error *err);
uint64_t  qe_os_file_bytes(int fd);
void      qe_os_write_close(int fd);                                     /* negative: nothing */

qe_status qe_os_make_folder(const char *path, qe_error *err);            /* exists: QE_E_STATE */
qe_status qe_os_rename(const char *from, const char *to, qe_error *err); /* and the folder that holds both is synced */
/* Writes under the name `fresh` first: whoever looks at `path`, or stops us, finds the old bytes or the new ones. */
qe_status qe_os_replace(const char *path, const char *fresh, const void *data, size_t bytes, qe_error *err);
qe_status qe_os_sync_folder(const char *path, qe_error *err);
/* Waits until no other holds the folder of `path`; qe_os_write_close(*fd) frees it. On file systems without locks nobody
 * waits: *fd is then -1. */
qe_status qe_os_lock_folder(const char *path, int *fd, qe_error *err);
uint64_t  qe_os_unique(void);                                            /* no two in this machine's live processes */
bool      qe_os_exists(const char *path);
void      qe_os_remove(const char *path);                                /* a file, or a folder of files; errors do not matter */
#endif
