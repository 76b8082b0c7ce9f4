/* The panel kernels and row operations for portable. */
/* Wider optimization takes minutes on arrays of lanes and gains nothing that matters here. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O2")
#endif
#include "gemm_body.h"
#include "ops_body.h"
#include "attention_body.h"
#include "decoded_body.h"

const panel_isa panel_isa_portable = {"portable", V_BIAS8, V_MAX_ROWS, kernel_find, widen, prepare_row, rope_head,
                                    attend, ATTEND_QUERIES};
const decoded_isa decoded_isa_portable = DECODED_ISA;
