/* base/check.h -- arithmetic on numbers that come from a file or a caller. True: it fits and *out holds the result;
 * false: it does not, and *out is unspecified. Nothing is allocated or indexed before such a check said yes. */
#ifndef QE_BASE_CHECK_H
#define QE_BASE_CHECK_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool qe_check_add(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_add_overflow(a, b, out);
}

static inline bool qe_check_mul(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}

/* Up to the next multiple of `alignment`, which is a power of two. */
static inline bool qe_check_align(uint64_t x, uint64_t alignment, uint64_t *out) {
    if (!qe_check_add(x, alignment - 1, out)) return false;
    *out &= ~(alignment - 1);
    return true;
}

/* [offset, offset + bytes) lies inside [0, size). */
static inline bool qe_check_span(uint64_t offset, uint64_t bytes, uint64_t size) {
    return offset <= size && bytes <= size - offset;
}

/* count * bytes_each as a size_t for malloc. */
static inline bool qe_check_array(uint64_t count, size_t bytes_each, size_t *out) {
    return !__builtin_mul_overflow(count, bytes_each, out);
}
#endif
