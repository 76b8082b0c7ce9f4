/* The operating-system floor on Linux. */
#define _GNU_SOURCE
#include "base/os.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <math.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *kind_of(mode_t mode) {
    if (S_ISDIR(mode)) return "a folder";
    if (S_ISFIFO(mode)) return "a FIFO";
    if (S_ISSOCK(mode)) return "a socket";
    return "a device";
}

static const char *error_text(int code, char *buffer, size_t bytes) {
    return strerror_r(code, buffer, bytes);
}

qe_status qe_os_open(const char *path, qe_os_file *out, qe_error *err) {
    char text[128];
    struct stat info;
    /* Without O_NONBLOCK, open() waits for the writer of a FIFO. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        qe_status status = errno == ENAMETOOLONG ? QE_E_PATH : QE_E_IO;
        return qe_error_at(err, status, path, -1, "cannot open: %s", error_text(errno, text, sizeof text));
    }
    if (fstat(fd, &info)) {
        int code = errno;
        close(fd);
        return qe_error_at(err, QE_E_IO, path, -1, "cannot read file status: %s", error_text(code, text, sizeof text));
    }
    if (!S_ISREG(info.st_mode)) {
        close(fd);
        return qe_error_at(err, QE_E_IO, path, -1, "expected a regular file, found %s", kind_of(info.st_mode));
    }
    *out = (qe_os_file){.fd = fd, .size = (uint64_t)info.st_size, .mtime_s = info.st_mtim.tv_sec,
                        .mtime_ns = info.st_mtim.tv_nsec};
    return QE_OK;
}

static bool changed(const qe_os_file *file) {
    struct stat info;
    return fstat(file->fd, &info) || (uint64_t)info.st_size != file->size || info.st_mtim.tv_sec != file->mtime_s ||
           info.st_mtim.tv_nsec != file->mtime_ns;
}

qe_status qe_os_read(const qe_os_file *file, const char *where, uint64_t offset, void *dst, size_t bytes,
                     qe_error *err) {
    char text[128];
    char *to = dst;
    size_t done = 0;
    while (done < bytes) {
        ssize_t got = pread(file->fd, to + done, bytes - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return qe_error_at(err, QE_E_IO, where, (int64_t)(offset + done), "cannot read %zu bytes: %s",
                               bytes - done, error_text(errno, text, sizeof text));
        if (!got) break;
        done += (size_t)got;
    }
    /* Looked at after the read: a writer that began in between is seen as well. */
    if (changed(file)) return qe_error_at(err, QE_E_CHANGED, where, (int64_t)offset, "changed since it was opened");
    if (done < bytes)
        return qe_error_at(err, QE_E_TRUNCATED, where, (int64_t)(offset + done), "expected %zu bytes, found %zu", bytes,
                           done);
    return QE_OK;
}

void qe_os_close(qe_os_file *file) {
    if (file->fd >= 0) close(file->fd);
    file->fd = -1;
}

qe_os_kind qe_os_look(const char *path) {
    struct stat info;
    if (lstat(path, &info)) return errno == ENOENT || errno == ENOTDIR ? QE_OS_NOTHING : QE_OS_OTHER;
    return S_ISLNK(info.st_mode) ? QE_OS_LINK : QE_OS_OTHER;
}

uint64_t qe_os_now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

/* Whole CPUs of the cgroup quota ("max 100000" or "200000 100000"), 0 if there is none. */
static int quota_cpus(void) {
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    long long quota = 0, period = 0;
    if (!f) return 0;
    int fields = fscanf(f, "%lld %lld", &quota, &period);
    fclose(f);
    return fields == 2 && quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

int32_t qe_os_cpus(void) {
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
    int quota = quota_cpus();
    if (quota && quota < count) count = quota;
    return count < 1 ? 1 : count;
}

static long topology(int cpu, const char *what) {
    char path[96];
    long value = -1;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/%s", cpu, what);
    FILE *f = fopen(path, "re");
    if (!f) return -1;
    if (fscanf(f, "%ld", &value) != 1) value = -1;
    fclose(f);
    return value;
}

/* CPUs of the affinity mask, the first of each core before the others; *cores of them are firsts, 0 where the topology is
 * not known. */
static int ordered_cpus(int32_t *out, int most, int *cores) {
    struct { long package, core; } seen[CPU_SETSIZE];
    int32_t   later[CPU_SETSIZE];
    cpu_set_t set;
    int       firsts = 0, laters = 0, count = 0;
    *cores = 0;
    if (sched_getaffinity(0, sizeof set, &set)) return 0;
    bool known_topology = true;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &set)) continue;
        long package = topology(cpu, "physical_package_id"), core = topology(cpu, "core_id");
        bool known = false;
        known_topology = known_topology && core >= 0;
        for (int i = 0; core >= 0 && i < firsts && !known; i++) known = seen[i].package == package && seen[i].core == core;
        if (known) {
            later[laters++] = cpu;
            continue;
        }
        seen[firsts].package = package;
        seen[firsts++].core = core;
        if (count < most) out[count++] = cpu;
    }
    for (int i = 0; i < laters && count < most; i++) out[count++] = later[i];
    *cores = known_topology ? firsts : 0;
    return count;
}

int32_t qe_os_physical_cores(void) {
    int32_t list[CPU_SETSIZE];
    int     cores, cpus = qe_os_cpus();
    ordered_cpus(list, CPU_SETSIZE, &cores);
    return cores < 1 || cores > cpus ? cpus : cores;
}

int32_t qe_os_cpu_list(int32_t *out, int32_t most) {
    int cores;
    return ordered_cpus(out, most, &cores);
}

bool qe_os_pin_thread(pthread_t thread, int32_t cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return pthread_setaffinity_np(thread, sizeof set, &set) == 0;
}

const char *qe_os_env(const char *name) {
    return secure_getenv(name);
}

bool qe_os_real(const char *text, double *out) {
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);      /* glibc's own constant: nothing is allocated */
    if (!c) return false;
    *out = strtod_l(text, NULL, c);
    freelocale(c);
    return isfinite(*out);
}

void *qe_os_alloc(size_t bytes) {
    size_t rounded = (bytes + 255) & ~(size_t)255;
    if (rounded < bytes) return NULL;
    return aligned_alloc(256, rounded ? rounded : 256);
}

void qe_os_release(void *block) {
    free(block);
}
