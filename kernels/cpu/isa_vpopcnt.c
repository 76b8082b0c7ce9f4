/* Counting bits with AVX-512's vpopcntd: CPUs that have AVX-512 VNNI need not have it. */
#if defined(__x86_64__)
#define V_AVX512
#include "bits_body.h"

void bits_differ_vpopcnt(const uint8_t *lines, const uint32_t *x, int64_t words, int32_t rows, int32_t differ[][PANEL_COLUMNS]) {
    differ_rows(lines, x, words, rows, differ);
}
#else
typedef int not_built_here;
#endif
