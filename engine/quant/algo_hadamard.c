/* algo_hadamard.c -- rotations by Hadamard matrices: fast Walsh-Hadamard times one small matrix of Paley's kinds, for
 * widths like 5632 = 128 * 44. H(2^e m) = Sylvester(2^e) x Paley(m), divided by sqrt(2^e m). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant/algo.h"

enum { MOST = 256 };

static bool is_prime(int n) {
    if (n < 2) return false;
    for (int d = 2; d * d <= n; d++) {
        if (n % d == 0) return false;
    }
    return true;
}

/* 1: Paley's first kind, q = m - 1 prime and 3 mod 4; 2: his second, q = m / 2 - 1 prime and 1 mod 4; 0: none here. */
static int paley_kind(int m) {
    if (m % 4) return 0;
    if (is_prime(m - 1) && (m - 1) % 4 == 3) return 1;
    int q = m / 2 - 1;
    return is_prime(q) && q % 4 == 1 ? 2 : 0;
}

static int64_t odd_part(int64_t n) {
    while (n > 0 && n % 2 == 0) n /= 2;
    return n;
}

/* Order of the small matrix for a block: the least one with the block's odd part; 0: there is none. */
static int small_order(int64_t block) {
    int64_t odd = odd_part(block);
    if (odd == 1) return 1;
    for (int m = 4; m <= MOST; m += 4) {
        if (odd_part(m) == odd && block % m == 0 && paley_kind(m)) return m;
    }
    return 0;
}

int64_t qe_hadamard_block(int64_t k) {
    if (k < 1) return 0;
    int64_t power = k / odd_part(k), best = power;
    for (int m = 4; m <= MOST; m += 4) {
        int64_t block = power * odd_part(m);
        if (paley_kind(m) && k % block == 0 && block % m == 0 && block > best) best = block;
    }
    return best;
}

/* 0 for 0, 1 for squares mod q, else -1. */
static int character(int a, int q) {
    a = (a % q + q) % q;
    if (a == 0) return 0;
    for (int i = 1; i < q; i++) {
        if (i * i % q == a) return 1;
    }
    return -1;
}

/* The bordered matrix of characters; skew for the first kind. */
static int conference(int i, int j, int q, bool skew) {
    if (i == 0 && j == 0) return 0;
    if (i == 0) return 1;
    if (j == 0) return skew ? -1 : 1;
    return character(i - j, q);
}

static void paley(int m, float *h) {
    static const int a[2][2] = {{1, 1}, {1, -1}}, b[2][2] = {{1, -1}, {-1, -1}};
    int kind = paley_kind(m);
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < m; j++) {
            int v;
            if (kind == 1) v = conference(i, j, m - 1, true) + (i == j);
            else if (i / 2 == j / 2) v = b[i % 2][j % 2];
            else v = conference(i / 2, j / 2, m / 2 - 1, false) * a[i % 2][j % 2];
            h[i * m + j] = (float)v;
        }
    }
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */
typedef struct rotation {
    float *x;
    int64_t rows, k, ldx, block;
    uint64_t seed;
    bool inverse;
    int m;
    float small[MOST * MOST];  /* h or its transpose: row i is what output i sums */
} rotation;

static void flip(const rotation *r, float *row) {
    if (!r->seed) return;
    for (int64_t c = 0; c < r->k; c++) {
        if (qe_mix(r->seed + (uint64_t)(c + 1) * 0x9e3779b97f4a7c15u) >> 63) row[c] = -row[c];
    }
}

static void walsh(float *x, int64_t block, int64_t m) {
    for (int64_t half = m; half < block; half *= 2) {
        for (int64_t at = 0; at < block; at += 2 * half) {
            for (int64_t i = at; i < at + half; i++) {
                float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        }
    }
}

static void rotate_row(const rotation *r, float *row) {
    float scale = (float)(1.0 / sqrt((double)r->block)), in[MOST];
    if (!r->inverse) flip(r, row);
    for (int64_t at = 0; at < r->k; at += r->block) {
        float *x = row + at;
        for (int64_t p = 0; p < r->block && r->m > 1; p += r->m) {
            memcpy(in, x + p, (size_t)r->m * sizeof(float));
            for (int i = 0; i < r->m; i++) {
                float sum = 0.0f;
                for (int j = 0; j < r->m; j++) sum += in[j] * r->small[i * r->m + j];
                x[p + i] = sum;
            }
        }
        walsh(x, r->block, r->m);
        for (int64_t i = 0; i < r->block; i++) x[i] *= scale;
    }
    if (r->inverse) flip(r, row);
}

enum { ROWS = 64 };
static void rotate_task(void *arg, int32_t index, int32_t count) {
    const rotation *r = arg;
    (void)count;
    for (int64_t row = (int64_t)index * ROWS; row < r->rows && row < (int64_t)(index + 1) * ROWS; row++)
        rotate_row(r, r->x + row * r->ldx);
}

qe_status qe_hadamard(float *x, int64_t rows, int64_t k, int64_t ldx, int64_t block, uint64_t seed, int32_t inverse,
                      const qe_executor *executor, qe_error *err) {
    if (!x || rows < 0 || k < 1 || ldx < k)
        return qe_error_set(err, QE_E_ARGUMENT, "x is NULL, or %lld x %lld values, ldx %lld", (long long)rows,
                            (long long)k, (long long)ldx);
    int m = block >= 1 && k % block == 0 ? small_order(block) : 0;
    if (!m)
        return qe_error_set(err, QE_E_ARGUMENT, "no Hadamard block of %lld columns in %lld; %lld would do",
                            (long long)block, (long long)k, (long long)qe_hadamard_block(k));
    rotation *r = qe_scratch(sizeof *r, err);
    if (!r) return QE_E_NOMEM;
    r->x = x;
    r->rows = rows;
    r->k = k;
    r->ldx = ldx;
    r->block = block;
    r->seed = seed;
    r->inverse = inverse != 0;
    r->m = m;
    if (m > 1) {
        paley(m, r->small);
        /* x H sums columns of h: keep the transpose, but for the inverse. */
        for (int i = 0; i < m && !inverse; i++) {
            for (int j = 0; j < i; j++) {
                float swap = r->small[i * m + j];
                r->small[i * m + j] = r->small[j * m + i];
                r->small[j * m + i] = swap;
            }
        }
    }
    qe_parallel(executor, rotate_task, r, (int32_t)((rows + ROWS - 1) / ROWS));
    free(r);
    return QE_OK;
}
