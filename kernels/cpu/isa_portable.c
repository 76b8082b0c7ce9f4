/* The panel kernels and row operations for portable. */
/* Wider optimization takes minutes on arrays of lanes and gains nothing that matters here. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O2")
#endif
#include "gemm_body.h"
#include "widen_body.h"
#include "ops_body.h"
#include "attention_body.h"
#include "decoded_body.h"
#include "bits_body.h"

const panel_isa panel_isa_portable = {
    .name = "portable", .bias8 = V_BIAS8, .max_rows = V_MAX_ROWS, .kernel = kernel_find,
    .wide = wide_form, .widen = widen, .wide_tiles = 3,
    .prepare_row = prepare_row, .rope_head = rope_head, .attend = attend, .attend_queries = ATTEND_QUERIES,
};
const decoded_isa decoded_isa_portable = DECODED_ISA;
void bits_differ_portable(const uint8_t *lines, const uint32_t *x, int64_t words, int32_t rows, int32_t differ[][PANEL_COLUMNS]) {
    differ_rows(lines, x, words, rows, differ);
}
