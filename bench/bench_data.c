/* bench_data.c -- schemes by name, random weights of them, and the float64 check. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>

#include "bench.h"
#include "ref/oracle.h"

#define INT_QUANT(width, scale_type, k_extent)                                                                             \
    .code = QE_CODE_INT, .bits = width, .scale = scale_type, .zero_const = 1 << (width - 1), .group_n = 1,                 \
    .group_k = k_extent
static const bench_scheme schemes[] = {
    {"w8a8", {INT_QUANT(8, QE_NUM_F32, 0)}, false, false},
    {"w4a8", {INT_QUANT(4, QE_NUM_U8, 128), .super = QE_NUM_F16, .super_n = 1}, false, true},
    {"w4a16", {INT_QUANT(4, QE_NUM_F16, 128)}, true, true},
    {"w8a16", {INT_QUANT(8, QE_NUM_F16, 128)}, true, true},
    {"w2a8", {.code = QE_CODE_INT, .bits = 2, .scale = QE_NUM_F32, .zero_const = 1, .group_n = 1}, false, false},
    {"w1a8", {.code = QE_CODE_SIGN, .bits = 1, .scale = QE_NUM_F32, .group_n = 1}, false, false},
    {"w1a1", {.code = QE_CODE_SIGN, .bits = 1, .scale = QE_NUM_F32, .group_n = 1}, false, false},
    {"q4_0", {INT_QUANT(4, QE_NUM_F16, 32)}, false, false},
    {"q5_0", {INT_QUANT(5, QE_NUM_F16, 32)}, false, false},
    {"q8_0", {INT_QUANT(8, QE_NUM_F16, 32)}, false, false},
    {"q4_k",
     {.code = QE_CODE_INT, .bits = 4, .scale = QE_NUM_U6, .super = QE_NUM_F16, .zero = QE_ZERO_REAL, .zero_num = QE_NUM_U6,
      .group_n = 1, .group_k = 32, .super_n = 1, .super_k = 256},
     false, false},
    {"q6_k", {INT_QUANT(6, QE_NUM_S8, 16), .super = QE_NUM_F16, .super_n = 1, .super_k = 256}, false, false},
};
static const char scheme_names[] = "w8a8,w4a8,w4a16,w8a16,w2a8,w1a8,w1a1,q4_0,q5_0,q8_0,q4_k,q6_k";

static const bench_scheme *find(const char *name, size_t bytes) {
    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++)
        if (strlen(schemes[i].name) == bytes && memcmp(schemes[i].name, name, bytes) == 0) return &schemes[i];
    return NULL;
}

int bench_schemes_parse(bench_options *o) {
    const char *at = o->scheme;
    for (;;) {
        size_t              bytes = strcspn(at, ",");
        const bench_scheme *scheme = find(at, bytes);
        if (!scheme) fprintf(stderr, "qbench: scheme \"%.*s\" is none of %s\n", (int)bytes, at, scheme_names);
        else if (o->scheme_count == BENCH_LIST) fprintf(stderr, "qbench: more than %d schemes\n", BENCH_LIST);
        if (!scheme || o->scheme_count == BENCH_LIST) return BENCH_USAGE;
        o->schemes[o->scheme_count++] = scheme;
        if (!at[bytes]) return BENCH_OK;
        at += bytes + 1;
    }
}

void bench_scheme_act(const bench_scheme *scheme, const qe_quant *quant, qe_act *out) {
    memset(out, 0, sizeof *out);
    if (scheme->float_input) return;
    qe_act_default(quant, out);
    if (strcmp(scheme->name, "w8a8") == 0 || strcmp(scheme->name, "w4a8") == 0) out->quant.group_k = 0;
    if (strcmp(scheme->name, "w1a1") == 0) out->quant = *quant;     /* signs by signs */
}

static uint64_t next(uint64_t *state) {      /* SplitMix64 */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void bench_random_floats(float *out, int64_t count, uint64_t seed) {
    for (int64_t i = 0; i < count; i++) out[i] = (float)((int64_t)(next(&seed) >> 40) - (1 << 23)) * 0x1p-23f;
}

static int64_t groups(int64_t size, int32_t extent) { return extent ? (size + extent - 1) / extent : 1; }

/* `count` numbers of a type: floats near `size`, integers from 1 up to what the type and the int8 product allow. */
static void fill_numbers(int32_t num, void *array, int64_t count, float size, uint32_t largest, uint64_t *state) {
    for (int64_t i = 0; array && i < count; i++) {
        uint64_t bits = next(state);
        float    value = size * (0.5f + (float)(bits >> 40) * 0x1p-24f);
        if (num == QE_NUM_F32) ((float *)array)[i] = value;
        if (num == QE_NUM_F16) ((uint16_t *)array)[i] = qe_f32_to_f16(value);
        if (qe_num_bytes(num) == 1) ((uint8_t *)array)[i] = (uint8_t)(1 + bits % largest);
    }
}

qe_status bench_weight(const qe_quant *quant, const qe_act *act, int64_t n, int64_t k, uint64_t seed, qe_qtensor *out,
                       void **block, qe_error *err) {
    size_t bytes = qe_qtensor_bytes(quant, n, k, 0);
    *block = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!bytes || !*block) return qe_error_set(err, QE_E_NOMEM, "no memory for a weight of %lld x %lld", (long long)n, (long long)k);
    QE_TRY(qe_qtensor_place(out, quant, n, k, 0, *block, bytes, err));
    out->act = *act;
    uint8_t *codes = out->codes;
    uint32_t top = 1u << quant->bits;
    for (int64_t i = 0; i < n * k; i += 8) {
        uint64_t bits = next(&seed);
        for (int64_t j = i; j < i + 8 && j < n * k; j++, bits >>= 8) {
            uint8_t code = (uint8_t)(bits & (top - 1));
            /* what the quantizer writes: symmetric schemes keep to -(2^(b-1) - 1), ternary ones to -1 .. 1 */
            bool middle = quant->code == QE_CODE_INT && quant->zero_const == 1 << quant->bits >> 1;
            bool ternary = quant->code == QE_CODE_INT && quant->bits == 2 && quant->zero_const == 1;
            codes[j] = (middle && code == 0) || (ternary && code == 3) ? 1 : code;
        }
    }
    int64_t  scales = groups(n, quant->group_n) * groups(k, quant->group_k);
    int64_t  supers = groups(n, quant->super_n) * groups(k, quant->super_k);
    uint32_t largest = quant->scale == QE_NUM_U8 ? 16 : quant->scale == QE_NUM_U6 ? 63 : 31;
    fill_numbers(quant->scale, out->scales, scales, 0.01f, largest, &seed);
    fill_numbers(quant->super, out->super, supers, 0.001f, 0, &seed);
    fill_numbers(quant->zero_num, out->zeros, scales, 0.01f, 63, &seed);
    fill_numbers(QE_NUM_F16, out->zero_super, supers, -0.001f, 0, &seed);
    out->facts = QE_FACT_TERNARY | QE_FACT_NO_MIN | QE_FACT_SCALES_POS | QE_FACT_INT8_PRODUCT | QE_FACT_F16_RANGE;
    return qe_qtensor_check(out, &out->facts, err);
}

/* The input as the GEMM sees it: quantized and multiplied back, by the contract's own functions. */
static void quantize_input(const qe_act *act, const float *x, int64_t k, int8_t *q, float *out) {
    int64_t group = act->quant.group_k ? act->quant.group_k : k;
    if (act->mode == QE_ACT_FLOAT) {
        memcpy(out, x, (size_t)k * sizeof *x);
        return;
    }
    for (int64_t at = 0; at < k; at += group) {
        int64_t      count = k - at < group ? k - at : group;
        qe_act_range r = act->quant.code == QE_CODE_SIGN ? qe_act_quantize_sign(x + at, count, q)
                                                         : qe_act_quantize_symmetric(x + at, count, q);
        for (int64_t i = 0; i < count; i++) out[at + i] = r.scale * (float)q[i];
    }
}

qe_status bench_check(const qe_qtensor *weight, const qe_act *act, int64_t chunk_k, bench_rounding u, const float *x,
                      int64_t m, const float *y, double *worst, double *max_err, qe_error *err) {
    int64_t n = weight->n, k = weight->k, rows_step = n / 61 + 1, tokens_step = m / 7 + 1, samples = 0;
    float  *w = malloc((size_t)k * sizeof *w), *v = malloc((size_t)k * sizeof *v);
    int8_t *q = malloc((size_t)k);
    double  squares = 0, largest = 0;
    qe_status status = w && v && q ? QE_OK : qe_error_set(err, QE_E_NOMEM, "no memory to check results");
    *worst = 0;
    for (int64_t row = 0; !status && row < n; row += row + rows_step < n || row == n - 1 ? rows_step : n - 1 - row) {
        status = qe_dequantize(weight, row, 1, w, k, err);
        for (int64_t token = 0; !status && token < m; token += tokens_step, samples++) {
            quantize_input(act, x + token * k, k, q, v);
            qk_oracle o = qk_oracle_dot(v, w, k);
            double    off = fabs((double)y[token * n + row] - o.y);
            double    bound = qk_oracle_bound(o, k, chunk_k, 0x1p-22, 0x1p-20 + u.u_w) + fabs(o.y) * u.u_y;
            if (!(off / bound <= *worst)) *worst = off / bound;      /* NaN counts as worst */
            if (!(off <= largest)) largest = off;
            squares += o.y * o.y;
        }
    }
    *max_err = squares > 0 ? largest / sqrt(squares / (double)samples) : largest;
    free(w), free(v), free(q);
    return status;
}
