/* Decoding and multiplying (decoded.h), written once over simd.h and compiled once per ISA. Lanes are output columns, so
 * every output is one chain of fmaf, ascending in k, on any ISA and tile height. */
#include "decoded.h"
#include "simd.h"

enum { DECODED_VECTORS = PANEL_COLUMNS / V_LANES };

/* C of the 32 codes of k, vector v. */
INLINE vf code_vector(const decoded_block *b, const int code, const int bits, int64_t k, int v) {
    if (code == QE_CODE_F32) return vf_load(b->lines + k * 128 + v * V_LANES * 4);
    if (code == QE_CODE_F16) return vf_half(b->lines + k * 64 + v * V_LANES * 2);
    if (code == QE_CODE_BF16) return vf_brain(b->lines + k * 64 + v * V_LANES * 2);
    vi c;
    if (bits == 8) {
        c = vi_u8(b->lines + k * 32 + v * V_LANES);
    } else {
        const int per = 4 / bits, column = v * V_LANES;
        c = vi_u8(b->lines + k / per * 16 + column % 16);
        c = vi_field(c, ((int)(k % per) * 2 + column / 16) * bits, (1 << bits) - 1);
    }
    if (code == QE_CODE_INT) return vf_from(c);
    if (code == QE_CODE_LUT || bits == 8) return vf_gather(b->table, vi_add(c, vi_load(b->base + v * V_LANES)));
    return vf_lookup16(b->table, c);
}

/* `plain`: the codes are the values. */
INLINE void decode_block(const decoded_block *b, const int code, const int bits, const int plain, const int offset,
                         float *out) {
    vf s[DECODED_VECTORS], z[DECODED_VECTORS], o[DECODED_VECTORS];
    for (int v = 0; v < DECODED_VECTORS; v++) {
        if (plain) break;
        s[v] = vf_load(b->scale + v * V_LANES);
        z[v] = vf_load(b->zero + v * V_LANES);
        if (offset) o[v] = vf_load(b->offset + v * V_LANES);
    }
    for (int32_t i = 0; i < b->count; i++, out += PANEL_COLUMNS) {
        if (b->ahead) v_prefetch(b->lines + (b->from + i) / (bits < 8 ? 4 / bits : 1) * (bits < 8 ? 16 : bits * 4));
#pragma GCC unroll 4
        for (int v = 0; v < DECODED_VECTORS; v++) {
            vf c = code_vector(b, code, bits, b->from + i, v);
            if (!plain) c = vf_mul(s[v], vf_sub(c, z[v]));
            if (!plain && offset) c = vf_add(c, o[v]);
            vf_store(out + v * V_LANES, c);
        }
    }
}

/* X(code, bits) of every decoder built; NF4 stands for each shared table of its width. */
#define DECODER_LIST(X)                                                                                              \
    X(QE_CODE_F32, 32) X(QE_CODE_F16, 16) X(QE_CODE_BF16, 16) X(QE_CODE_INT, 1) X(QE_CODE_INT, 2) X(QE_CODE_INT, 4)  \
    X(QE_CODE_INT, 8) X(QE_CODE_LUT, 1) X(QE_CODE_LUT, 2) X(QE_CODE_LUT, 4) X(QE_CODE_LUT, 8) X(QE_CODE_NF4, 1)      \
    X(QE_CODE_NF4, 4) X(QE_CODE_NF4, 8)

#define DECODER(code, bits)                                                                         \
    static __attribute__((noinline)) void decode_##code##_##bits(const decoded_block *b, float *out) { \
        if (code < QE_CODE_INT && b->plain) decode_block(b, code, bits, 1, 0, out);                 \
        else if (b->offset) decode_block(b, code, bits, 0, 1, out);                                 \
        else decode_block(b, code, bits, 0, 0, out);                                                \
    }
DECODER_LIST(DECODER)

static void decode(const decoded_block *b, float *out) {
    int32_t code = b->code > QE_CODE_LUT ? QE_CODE_NF4 : b->code, bits = b->format->bits;
#define DECODER_CASE(c, w) \
    if (code == c && bits == w) decode_##c##_##w(b, out);
    DECODER_LIST(DECODER_CASE)
}

#if defined(V_AVX2)
enum { DECODED_ROWS = 6 };
#define DECODED_HEIGHTS(X) X(1) X(2) X(4) X(6)
#elif defined(V_AVX512)
enum { DECODED_ROWS = 12 };
#define DECODED_HEIGHTS(X) X(1) X(2) X(4) X(8) X(12)
#else
enum { DECODED_ROWS = 4 };
#define DECODED_HEIGHTS(X) X(1) X(4)
#endif

#define DECODED_STRIDE (sizeof(decoded_row) / sizeof(float))

INLINE void multiply_tile(const int R, const int P, const float *x, const float *w, int32_t count, float *sum,
                          bool starts) {
    for (int first = 0; first < DECODED_VECTORS; first += P) {
        vf acc[DECODED_ROWS][4];
#pragma GCC unroll 12
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int p = 0; p < P; p++)
                acc[r][p] = starts ? vf_set1(0.0f) : vf_load(sum + r * DECODED_STRIDE + (first + p) * V_LANES);
        for (int32_t i = 0; i < count; i++) {
            vf line[4];
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) line[p] = vf_load(w + i * PANEL_COLUMNS + (first + p) * V_LANES);
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) {
                vf v = vf_set1(x[i * R + r]);
#pragma GCC unroll 4
                for (int p = 0; p < P; p++) acc[r][p] = vf_fma(v, line[p], acc[r][p]);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) vf_store(sum + r * DECODED_STRIDE + (first + p) * V_LANES, acc[r][p]);
    }
}

static int32_t height(int32_t rows) {
#define HEIGHT_CASE(R) \
    if (rows <= (R)) return R;
    DECODED_HEIGHTS(HEIGHT_CASE)
    return DECODED_ROWS;
}

#define MULTIPLY(R)                                                                                              \
    static __attribute__((noinline)) void multiply_##R(const float *x, const float *w, int32_t count, float *sum, \
                                                       bool starts) {                                            \
        multiply_tile(R, R == 1 ? DECODED_VECTORS : 2, x, w, count, sum, starts);                                \
    }
DECODED_HEIGHTS(MULTIPLY)

static void multiply(int32_t R, const float *x, const float *w, int32_t count, decoded_row *rows, bool starts) {
#define MULTIPLY_CASE(H) \
    if (R == (H)) multiply_##H(x, w, count, rows->sum, starts);
    DECODED_HEIGHTS(MULTIPLY_CASE)
}

static void add_piece(decoded_row *row) {
    for (int c = 0; c < PANEL_COLUMNS; c++) row->acc[c] += (uint32_t)(int32_t)row->sum[c];
}

/* y += f * s_x at the end of an activation group; the chunk's y joins the total at its end. */
static void close_outer(decoded_row *row, const decoded_step *s, float x_scale) {
    if (s->outer_end && s->min) {
        for (int c = 0; c < PANEL_COLUMNS; c++)
            row->f[c] = fmaf((float)(int32_t)row->mins[c], s->min_super[c], row->f[c]);
        memset(row->mins, 0, sizeof row->mins);
    }
    if (s->act_end) {
        for (int c = 0; c < PANEL_COLUMNS; c++) row->y[c] = fmaf(row->f[c], x_scale, row->y[c]);
        memset(row->f, 0, sizeof row->f);
    }
    if (s->chunk_end) {
        for (int c = 0; c < PANEL_COLUMNS; c++) row->total[c] = s->first_chunk ? row->y[c] : row->total[c] + row->y[c];
        memset(row->y, 0, sizeof row->y);
    }
}

static void close_step(decoded_row *row, const decoded_step *s, float x_scale, int32_t x_sum) {
    if (s->mode == DECODED_FLOATS) {
        if (!s->chunk_end) return;
        for (int c = 0; c < PANEL_COLUMNS; c++)
            row->total[c] = s->first_chunk ? row->sum[c] : row->total[c] + row->sum[c];
        return;
    }
    if (s->integer) add_piece(row);
    if (!s->group_end) return;
    if (s->mode == DECODED_WHOLE) {
        for (int c = 0; c < PANEL_COLUMNS; c++) row->total[c] = (float)(int32_t)row->acc[c] * x_scale * s->scale[c];
        return;
    }
    for (int c = 0; c < PANEL_COLUMNS; c++) {
        float v = s->integer ? (float)(int32_t)row->acc[c] : row->sum[c];
        row->f[c] = fmaf(v, s->scale[c], row->f[c]);
        row->acc[c] = 0;
    }
    if (s->offset)
        for (int c = 0; c < PANEL_COLUMNS; c++) row->f[c] = fmaf((float)x_sum, s->offset[c], row->f[c]);
    if (s->min)
        for (int c = 0; c < PANEL_COLUMNS; c++) row->mins[c] += (uint32_t)(int32_t)s->min[c] * (uint32_t)x_sum;
    close_outer(row, s, x_scale);
}

#define DECODED_ISA {DECODED_ROWS, height, decode, multiply, close_step}
