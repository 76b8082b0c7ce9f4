/* The panel kernels and row operations for avx512, without and with AMX. */
#if defined(__x86_64__)
#define V_AVX512
#include "gemm_body.h"
#include "widen_body.h"
#include "amx_body.h"
#include "ops_body.h"
#include "attention_body.h"
#include "decoded_body.h"

/* Where bit operations have ports of their own, unpacking fits beside the dot products: a wide panel would be more to read. */
const panel_isa panel_isa_avx512 = {
    .name = "avx512", .bias8 = V_BIAS8, .max_rows = V_MAX_ROWS, .kernel = kernel_find,
    .prepare_row = prepare_row, .rope_head = rope_head, .attend = attend, .attend_queries = ATTEND_QUERIES,
};
const panel_isa panel_isa_avx512_unpacked = {
    .name = "avx512", .bias8 = V_BIAS8, .max_rows = V_MAX_ROWS, .kernel = kernel_find,
    .wide = wide_form, .widen = widen, .wide_tiles = 3,
    .prepare_row = prepare_row, .rope_head = rope_head, .attend = attend, .attend_queries = ATTEND_QUERIES,
};
const panel_isa panel_isa_amx = {
    .name = "amx", .bias8 = V_BIAS8, .max_rows = AMX_ROWS, .kernel = amx_find,
    .wide = amx_wide, .widen = amx_widen, .wide_tiles = 1, .lines = amx_lines,
    .enter = amx_enter, .leave = amx_leave,
    .prepare_row = prepare_row, .rope_head = rope_head, .attend = attend, .attend_queries = ATTEND_QUERIES,
};
const decoded_isa decoded_isa_avx512 = DECODED_ISA;
#else
typedef int not_built_here;
#endif
