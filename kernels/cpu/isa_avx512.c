/* The panel kernels and row operations for avx512. */
#if defined(__x86_64__)
#define V_AVX512
#include "gemm_body.h"
#include "ops_body.h"
#include "attention_body.h"
#include "decoded_body.h"

const panel_isa panel_isa_avx512 = {"avx512", V_BIAS8, V_MAX_ROWS, kernel_find, WIDEN, prepare_row, rope_head,
                                    attend, ATTEND_QUERIES};
const decoded_isa decoded_isa_avx512 = DECODED_ISA;
#else
typedef int not_built_here;
#endif
