/* codebook.c -- the values of the codes that have a fixed table. */
#include <math.h>

#include <qengine/quant.h>

static const float sign_values[2] = {-1.0f, 1.0f};
static const float nf4_values[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};
static const float fp4b_values[16] = {
    0.0f,  0.0625f / 12.0f,  8.0f / 12.0f,  12.0f / 12.0f,  4.0f / 12.0f,  6.0f / 12.0f,  2.0f / 12.0f,  3.0f / 12.0f,
    -0.0f, -0.0625f / 12.0f, -8.0f / 12.0f, -12.0f / 12.0f, -4.0f / 12.0f, -6.0f / 12.0f, -2.0f / 12.0f, -3.0f / 12.0f};
static const float iq4nl_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const float e2m1_values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                      -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

/* Eight-bit floats, written out so that the tables are constants: sign, exponent e, fraction f / 2^m. */
#define E4M3_1(s, e, f) ((s) * ((e) ? (8.0f + (f)) : (f)) * (float)(1 << ((e) ? (e)-1 : 0)) * 0.001953125f)
#define E4M3_7(s, e) E4M3_1(s, e, 0), E4M3_1(s, e, 1), E4M3_1(s, e, 2), E4M3_1(s, e, 3), E4M3_1(s, e, 4), \
                     E4M3_1(s, e, 5), E4M3_1(s, e, 6)
#define E4M3_FULL(s, e) E4M3_7(s, e), E4M3_1(s, e, 7)
#define E4M3_HALF(s)                                                                                            \
    E4M3_FULL(s, 0), E4M3_FULL(s, 1), E4M3_FULL(s, 2), E4M3_FULL(s, 3), E4M3_FULL(s, 4), E4M3_FULL(s, 5),       \
    E4M3_FULL(s, 6), E4M3_FULL(s, 7), E4M3_FULL(s, 8), E4M3_FULL(s, 9), E4M3_FULL(s, 10), E4M3_FULL(s, 11),     \
    E4M3_FULL(s, 12), E4M3_FULL(s, 13), E4M3_FULL(s, 14), E4M3_7(s, 15), NAN
static const float e4m3_values[256] = {E4M3_HALF(1.0f), E4M3_HALF(-1.0f)};

#define E5M2_1(s, e, f) ((s) * ((e) ? (4.0f + (f)) : (f)) * (float)(1u << ((e) ? (e)-1 : 0)) * 0x1p-16f)
#define E5M2_4(s, e) E5M2_1(s, e, 0), E5M2_1(s, e, 1), E5M2_1(s, e, 2), E5M2_1(s, e, 3)
#define E5M2_HALF(s)                                                                                            \
    E5M2_4(s, 0), E5M2_4(s, 1), E5M2_4(s, 2), E5M2_4(s, 3), E5M2_4(s, 4), E5M2_4(s, 5), E5M2_4(s, 6),           \
    E5M2_4(s, 7), E5M2_4(s, 8), E5M2_4(s, 9), E5M2_4(s, 10), E5M2_4(s, 11), E5M2_4(s, 12), E5M2_4(s, 13),       \
    E5M2_4(s, 14), E5M2_4(s, 15), E5M2_4(s, 16), E5M2_4(s, 17), E5M2_4(s, 18), E5M2_4(s, 19), E5M2_4(s, 20),    \
    E5M2_4(s, 21), E5M2_4(s, 22), E5M2_4(s, 23), E5M2_4(s, 24), E5M2_4(s, 25), E5M2_4(s, 26), E5M2_4(s, 27),    \
    E5M2_4(s, 28), E5M2_4(s, 29), E5M2_4(s, 30), (s) * INFINITY, NAN, NAN, NAN
static const float e5m2_values[256] = {E5M2_HALF(1.0f), E5M2_HALF(-1.0f)};

const float *qe_code_values(int32_t code) {
    switch (code) {
    case QE_CODE_SIGN: return sign_values;
    case QE_CODE_NF4: return nf4_values;
    case QE_CODE_FP4B: return fp4b_values;
    case QE_CODE_IQ4NL: return iq4nl_values;
    case QE_CODE_E2M1: return e2m1_values;
    case QE_CODE_E4M3: return e4m3_values;
    case QE_CODE_E5M2: return e5m2_values;
    default: return NULL;
    }
}
