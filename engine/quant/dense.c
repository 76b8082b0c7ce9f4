/* dense.c -- packed float32 products, the Hessian's sums, and a blocked Cholesky factor. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/check.h"
#include "quant/dense.h"

/* Register tile and cache blocks. */
enum { MR = 6, NR = 16, KC = QE_GEMM_CHUNK, MC = 96, NC = 256 };

void *qe_scratch(size_t bytes, qe_error *err) {
    uint64_t rounded = 0;
    void *p = qe_check_align(bytes ? bytes : 1, 64, &rounded) ? aligned_alloc(64, (size_t)rounded) : NULL;
    if (!p) qe_error_set(err, QE_E_NOMEM, "no memory for %zu bytes of scratch", bytes);
    return p;
}

size_t qe_gemm_scratch_bytes(void) { return sizeof(float) * (MC * KC + KC * NC); }

/* ---- packing ----------------------------------------------------------------------------------------------------- */
/* Rows of consecutive k into a strip, 4 k of 4 or 2 rows at a time; returns the k done. */
#if defined(__x86_64__)
static int64_t turn(float *out, const float *p, int64_t along, int64_t k, int width, int rows, float sign) {
    const __m128 factor = _mm_set1_ps(sign);
    int64_t i = 0;
    for (; i + 4 <= k; i += 4, out += 4 * width) {
        __m128 a = _mm_mul_ps(factor, _mm_loadu_ps(p + i)), b = _mm_mul_ps(factor, _mm_loadu_ps(p + along + i));
        if (rows == 4) {
            __m128 c = _mm_mul_ps(factor, _mm_loadu_ps(p + 2 * along + i));
            __m128 d = _mm_mul_ps(factor, _mm_loadu_ps(p + 3 * along + i));
            _MM_TRANSPOSE4_PS(a, b, c, d);
            _mm_storeu_ps(out, a);
            _mm_storeu_ps(out + width, b);
            _mm_storeu_ps(out + 2 * width, c);
            _mm_storeu_ps(out + 3 * width, d);
        } else {
            __m128 low = _mm_unpacklo_ps(a, b), high = _mm_unpackhi_ps(a, b);
            _mm_storel_pi((__m64 *)(void *)out, low);
            _mm_storeh_pi((__m64 *)(void *)(out + width), low);
            _mm_storel_pi((__m64 *)(void *)(out + 2 * width), high);
            _mm_storeh_pi((__m64 *)(void *)(out + 3 * width), high);
        }
    }
    return i;
}
#else
static int64_t turn(float *out, const float *p, int64_t along, int64_t k, int width, int rows, float sign) {
    (void)out, (void)p, (void)along, (void)k, (void)width, (void)rows, (void)sign;
    return 0;
}
#endif

/* Strips of `width` (a constant, even) along the first index of v, k-major, filled up with zeros. */
static inline __attribute__((always_inline)) void pack(float *out, const float *p, int64_t along, int64_t k_stride,
                                                       int64_t count, int64_t k, int width, float sign) {
    for (int64_t at = 0; at < count; at += width) {
        int live = (int)(count - at < width ? count - at : width);
        const float *from = p + at * along;
        int64_t i = 0;
        if (live == width && k_stride == 1) {
            for (int l = 0; l < width; l += width - l >= 4 ? 4 : 2)
                i = turn(out + l, from + l * along, along, k, width, width - l >= 4 ? 4 : 2, sign);
        } else if (live == width && along == 1) {
            for (; i < k; i++)
                for (int l = 0; l < width; l++) out[i * width + l] = sign * from[l + i * k_stride];
        }
        for (; i < k; i++) {
            for (int l = 0; l < live; l++) out[i * width + l] = sign * from[l * along + i * k_stride];
            for (int l = live; l < width; l++) out[i * width + l] = 0.0f;
        }
        out += width * k;
    }
}

/* ---- the tile ---------------------------------------------------------------------------------------------------- */
/* out[MR][NR] = sum over k, by one fmaf each: the same bits with and without vectors. */
typedef void tile_fn(int64_t k, const float *a, const float *b, float *out);

static void tile_plain(int64_t k, const float *a, const float *b, float *out) {
    float sum[MR * NR] = {0};
    for (int64_t i = 0; i < k; i++, a += MR, b += NR) {
        for (int r = 0; r < MR; r++) {
            for (int l = 0; l < NR; l++) sum[r * NR + l] = fmaf(a[r], b[l], sum[r * NR + l]);
        }
    }
    memcpy(out, sum, sizeof sum);
}

#if defined(__x86_64__)
/* Twelve accumulators, two vectors of b and one broadcast: the sixteen registers. */
__attribute__((target("avx2,fma"))) static void tile_fma(int64_t k, const float *a, const float *b, float *out) {
    __m256 c00 = _mm256_setzero_ps(), c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00;
    __m256 c30 = c00, c31 = c00, c40 = c00, c41 = c00, c50 = c00, c51 = c00, x;
    for (int64_t i = 0; i < k; i++, a += MR, b += NR) {
        __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
        x = _mm256_broadcast_ss(a + 0);
        c00 = _mm256_fmadd_ps(x, b0, c00);
        c01 = _mm256_fmadd_ps(x, b1, c01);
        x = _mm256_broadcast_ss(a + 1);
        c10 = _mm256_fmadd_ps(x, b0, c10);
        c11 = _mm256_fmadd_ps(x, b1, c11);
        x = _mm256_broadcast_ss(a + 2);
        c20 = _mm256_fmadd_ps(x, b0, c20);
        c21 = _mm256_fmadd_ps(x, b1, c21);
        x = _mm256_broadcast_ss(a + 3);
        c30 = _mm256_fmadd_ps(x, b0, c30);
        c31 = _mm256_fmadd_ps(x, b1, c31);
        x = _mm256_broadcast_ss(a + 4);
        c40 = _mm256_fmadd_ps(x, b0, c40);
        c41 = _mm256_fmadd_ps(x, b1, c41);
        x = _mm256_broadcast_ss(a + 5);
        c50 = _mm256_fmadd_ps(x, b0, c50);
        c51 = _mm256_fmadd_ps(x, b1, c51);
    }
    const __m256 c[2 * MR] = {c00, c01, c10, c11, c20, c21, c30, c31, c40, c41, c50, c51};
    for (int r = 0; r < 2 * MR; r++) _mm256_storeu_ps(out + 8 * r, c[r]);
}
static tile_fn *choose_tile(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? tile_fma : tile_plain;
}
#else
static tile_fn *choose_tile(void) { return tile_plain; }
#endif

static void block(tile_fn *tile, int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c, int64_t ldc,
                  bool add) {
    float out[MR * NR];
    for (int64_t j = 0; j < n; j += NR) {
        int columns = (int)(n - j < NR ? n - j : NR);
        for (int64_t i = 0; i < m; i += MR) {
            int rows = (int)(m - i < MR ? m - i : MR);
            tile(k, a + i * k, b + j * k, out);
            for (int r = 0; r < rows; r++) {
                float *to = c + (i + r) * ldc + j;
                const float *from = out + r * NR;
                if (add)
                    for (int l = 0; l < columns; l++) to[l] += from[l];
                else
                    for (int l = 0; l < columns; l++) to[l] = from[l];
            }
        }
    }
}

void qe_gemm(int64_t m, int64_t n, int64_t k, qe_view a, qe_view b, float *c, int64_t ldc, bool add, float sign,
             void *scratch) {
    float *pa = scratch, *pb = pa + MC * KC;
    tile_fn *tile = choose_tile();
    if (k == 0 && !add) {
        for (int64_t i = 0; i < m; i++) memset(c + i * ldc, 0, (size_t)n * sizeof(float));
    }
    for (int64_t kc = 0; kc < k; kc += KC) {
        int64_t depth = k - kc < KC ? k - kc : KC;
        for (int64_t nc = 0; nc < n; nc += NC) {
            int64_t width = n - nc < NC ? n - nc : NC;
            pack(pb, b.p + kc * b.row + nc * b.column, b.column, b.row, width, depth, NR, 1.0f);
            for (int64_t mc = 0; mc < m; mc += MC) {
                int64_t height = m - mc < MC ? m - mc : MC;
                pack(pa, a.p + mc * a.row + kc * a.column, a.row, a.column, height, depth, MR, sign);
                block(tile, height, width, depth, pa, pb, c + mc * ldc + nc, ldc, add || kc > 0);
            }
        }
    }
}

/* ---- the Hessian ------------------------------------------------------------------------------------------------- */
enum { TILE_ROWS = 192, TILE_COLUMNS = 256, TOKENS = 2 * KC };

typedef struct hessian_job {
    double *h;
    const float *x;
    int64_t k, rows, ldx;
    bool failed;
} hessian_job;

static void hessian_rows(void *arg, int32_t index, int32_t count) {
    hessian_job *j = arg;
    int64_t from = (int64_t)index * TILE_ROWS, end = from + TILE_ROWS < j->k ? from + TILE_ROWS : j->k;
    (void)count;
    float *tile = qe_scratch(qe_gemm_scratch_bytes() + sizeof(float) * TILE_ROWS * TILE_COLUMNS, NULL);
    if (!tile) {
        __atomic_store_n(&j->failed, true, __ATOMIC_RELAXED);
        return;
    }
    void *scratch = tile + TILE_ROWS * TILE_COLUMNS;
    for (int64_t at = 0; at < j->rows; at += TOKENS) {
        int64_t tokens = j->rows - at < TOKENS ? j->rows - at : TOKENS;
        const float *x = j->x + at * j->ldx;
        for (int64_t column = 0; column < end; column += TILE_COLUMNS) {
            int64_t width = end - column < TILE_COLUMNS ? end - column : TILE_COLUMNS;
            qe_gemm(end - from, width, tokens, (qe_view){x + from, 1, j->ldx}, (qe_view){x + column, j->ldx, 1}, tile,
                    TILE_COLUMNS, false, 1.0f, scratch);
            for (int64_t r = from; r < end; r++) {
                double *h = j->h + r * j->k + column;
                const float *t = tile + (r - from) * TILE_COLUMNS;
                int64_t live = r + 1 - column < width ? r + 1 - column : width;
                for (int64_t c = 0; c < live; c++) h[c] += (double)t[c];
            }
        }
    }
    free(tile);
}

qe_status qe_hessian_add(double *h, int64_t k, const float *x, int64_t rows, int64_t ldx, const qe_executor *executor,
                         qe_error *err) {
    if (!h || !x || k < 1 || rows < 0 || ldx < k || k > INT32_MAX)
        return qe_error_set(err, QE_E_ARGUMENT, "hessian or x is NULL, or %lld rows of %lld columns, ldx %lld",
                            (long long)rows, (long long)k, (long long)ldx);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < k; c++) {
            if (!isfinite(x[r * ldx + c]))
                return qe_error_set(err, QE_E_VALUE, "input of row %lld, column %lld is not a finite number",
                                    (long long)r, (long long)c);
        }
    }
    hessian_job j = {h, x, k, rows, ldx, false};
    qe_parallel(executor, hessian_rows, &j, (int32_t)((k + TILE_ROWS - 1) / TILE_ROWS));
    if (j.failed) return qe_error_set(err, QE_E_NOMEM, "no memory for the tiles of a Hessian");
    return QE_OK;
}

/* ---- Cholesky ---------------------------------------------------------------------------------------------------- */
enum { PANEL = 128, STRIP = 192 };

typedef struct cholesky_job {
    float *a;
    int64_t k, from, width;    /* the panel's columns */
    bool failed;
} cholesky_job;

/* The diagonal block, unblocked, sums in float64. Returns the column whose pivot is not positive, or -1. */
static int64_t factor_diagonal(float *a, int64_t k, int64_t width) {
    for (int64_t c = 0; c < width; c++) {
        for (int64_t r = c; r < width; r++) {
            double sum = (double)a[r * k + c];
            for (int64_t i = 0; i < c; i++) sum -= (double)a[r * k + i] * (double)a[c * k + i];
            if (r == c && !(sum > 0.0)) return c;
            a[r * k + c] = (float)(r == c ? sqrt(sum) : sum / (double)a[c * k + c]);
        }
    }
    return -1;
}

/* Rows below the panel: x L^T = a. */
static void solve_row(float *row, const float *diagonal, int64_t k, int64_t width) {
    for (int64_t c = 0; c < width; c++) {
        const float *l = diagonal + c * k;
        float lane[8] = {0};
        int64_t i = 0;
        for (; i + 8 <= c; i += 8) {
            for (int t = 0; t < 8; t++) lane[t] += row[i + t] * l[i + t];
        }
        for (; i < c; i++) lane[0] += row[i] * l[i];
        float sum = ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
        row[c] = (row[c] - sum) / l[c];
    }
}

static void solve_strip(void *arg, int32_t index, int32_t count) {
    cholesky_job *j = arg;
    int64_t row = j->from + j->width + (int64_t)index * STRIP, end = row + STRIP < j->k ? row + STRIP : j->k;
    (void)count;
    for (; row < end; row++) solve_row(j->a + row * j->k + j->from, j->a + j->from * j->k + j->from, j->k, j->width);
}

/* One strip of rows of the trailing matrix minus its panel's product; the tile on the diagonal is done whole. */
static void update_strip(void *arg, int32_t index, int32_t count) {
    cholesky_job *j = arg;
    /* Long strips first, so that threads end together. */
    int64_t row = j->from + j->width + (int64_t)(count - 1 - index) * STRIP, k = j->k;
    int64_t end = row + STRIP < k ? row + STRIP : k, column = j->from + j->width;
    void *scratch = qe_scratch(qe_gemm_scratch_bytes(), NULL);
    if (!scratch) {
        __atomic_store_n(&j->failed, true, __ATOMIC_RELAXED);
        return;
    }
    qe_gemm(end - row, end - column, j->width, (qe_view){j->a + row * k + j->from, k, 1},
            (qe_view){j->a + column * k + j->from, 1, k}, j->a + row * k + column, k, true, -1.0f, scratch);
    free(scratch);
}

qe_status qe_cholesky(float *a, int64_t k, const qe_executor *executor, qe_error *err) {
    for (int64_t from = 0; from < k; from += PANEL) {
        int64_t width = k - from < PANEL ? k - from : PANEL;
        int64_t bad = factor_diagonal(a + from * k + from, k, width);
        if (bad >= 0)
            return qe_error_set(err, QE_E_RANGE, "the matrix is not positive definite at column %lld",
                                (long long)(from + bad));
        cholesky_job j = {a, k, from, width, false};
        int32_t strips = (int32_t)((k - from - width + STRIP - 1) / STRIP);
        qe_parallel(executor, solve_strip, &j, strips);
        qe_parallel(executor, update_strip, &j, strips);
        if (j.failed) return qe_error_set(err, QE_E_NOMEM, "no memory for the tiles of a Cholesky factor");
    }
    return QE_OK;
}
