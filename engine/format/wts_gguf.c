/* GGUF element types: the table, and the decoders of blocks into the canonical form. Each decoder copies codes, scales
 * and minimums as integers and fp16 bits; no arithmetic rounds here. Element order in a 32-block: the low nibbles are
 * the first half, the high nibbles the second. */
#include <string.h>

#include "base/check.h"
#include "format/store_internal.h"

/* fp16 bits with exponent 31: infinity or NaN. */
static bool f16_unusable(uint16_t bits) {
    return (bits & 0x7c00) == 0x7c00;
}

static uint16_t u16_at(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

/* Where row `row` of the band's arrays starts. */
static uint8_t *codes_of(const qe_qtensor *t, int64_t row) {
    return (uint8_t *)t->codes + row * t->k;
}

/* ---- plain floats --------------------------------------------------------------------------------------------- */
static int64_t decode_f32(const uint8_t *src, int64_t row, qe_qtensor *t) {
    uint8_t *dst = (uint8_t *)t->codes + row * t->k * 4;
    memcpy(dst, src, (size_t)t->k * 4);
    for (int64_t i = 0; i < t->k; i++)
        if ((src[4 * i + 3] & 0x7f) == 0x7f && (src[4 * i + 2] & 0x80)) return i;
    return -1;
}

static int64_t decode_16(const uint8_t *src, int64_t row, qe_qtensor *t, uint16_t exponent) {
    uint8_t *dst = (uint8_t *)t->codes + row * t->k * 2;
    memcpy(dst, src, (size_t)t->k * 2);
    for (int64_t i = 0; i < t->k; i++)
        if ((u16_at(src + 2 * i) & exponent) == exponent) return i;
    return -1;
}

static int64_t decode_f16(const uint8_t *src, int64_t row, qe_qtensor *t) {
    return decode_16(src, row, t, 0x7c00);
}

static int64_t decode_bf16(const uint8_t *src, int64_t row, qe_qtensor *t) {
    return decode_16(src, row, t, 0x7f80);
}

/* ---- blocks of 32: one fp16 scale ----------------------------------------------------------------------------- */
static int64_t decode_q4_0(const uint8_t *src, int64_t row, qe_qtensor *t) {
    uint8_t *codes = codes_of(t, row);
    uint16_t *scales = (uint16_t *)t->scales + row * (t->k / 32);
    for (int64_t b = 0; b < t->k / 32; b++, src += 18, codes += 32) {
        scales[b] = u16_at(src);
        if (f16_unusable(scales[b])) return b * 32;
        for (int i = 0; i < 16; i++) {
            codes[i] = src[2 + i] & 15;
            codes[i + 16] = src[2 + i] >> 4;
        }
    }
    return -1;
}

static int64_t decode_q5_0(const uint8_t *src, int64_t row, qe_qtensor *t) {
    uint8_t *codes = codes_of(t, row);
    uint16_t *scales = (uint16_t *)t->scales + row * (t->k / 32);
    for (int64_t b = 0; b < t->k / 32; b++, src += 22, codes += 32) {
        scales[b] = u16_at(src);
        if (f16_unusable(scales[b])) return b * 32;
        uint32_t high = (uint32_t)u16_at(src + 2) | (uint32_t)u16_at(src + 4) << 16;
        for (int i = 0; i < 16; i++) {
            codes[i] = (uint8_t)((src[6 + i] & 15) | (high >> i & 1) << 4);
            codes[i + 16] = (uint8_t)(src[6 + i] >> 4 | (high >> (i + 16) & 1) << 4);
        }
    }
    return -1;
}

static int64_t decode_q8_0(const uint8_t *src, int64_t row, qe_qtensor *t) {
    uint8_t *codes = codes_of(t, row);
    uint16_t *scales = (uint16_t *)t->scales + row * (t->k / 32);
    for (int64_t b = 0; b < t->k / 32; b++, src += 34, codes += 32) {
        scales[b] = u16_at(src);
        if (f16_unusable(scales[b])) return b * 32;
        for (int i = 0; i < 32; i++) codes[i] = src[2 + i] ^ 0x80; /* q + 128 */
    }
    return -1;
}

/* ---- blocks of 256: integer scales below one fp16 ------------------------------------------------------------- */
/* d, dmin, 12 bytes of packed 6-bit scales and minimums, 128 bytes of nibbles. v = d*sc*q - dmin*mn: the canonical
 * second level of the minimum is -dmin. */
static int64_t decode_q4_k(const uint8_t *src, int64_t row, qe_qtensor *t) {
    uint8_t *codes = codes_of(t, row);
    int64_t blocks = t->k / 256;
    uint8_t *scales = (uint8_t *)t->scales + row * blocks * 8, *mins = (uint8_t *)t->zeros + row * blocks * 8;
    uint16_t *super = (uint16_t *)t->super + row * blocks, *zero_super = (uint16_t *)t->zero_super + row * blocks;
    for (int64_t b = 0; b < blocks; b++, src += 144, codes += 256, scales += 8, mins += 8) {
        uint16_t d = u16_at(src), dmin = u16_at(src + 2);
        if (f16_unusable(d) || f16_unusable(dmin)) return b * 256;
        super[b] = d;
        zero_super[b] = dmin ^ 0x8000;
        const uint8_t *p = src + 4, *q = src + 16;
        for (int s = 0; s < 4; s++) {
            scales[s] = p[s] & 63;
            mins[s] = p[s + 4] & 63;
            scales[s + 4] = (uint8_t)((p[s + 8] & 15) | (p[s] >> 6) << 4);
            mins[s + 4] = (uint8_t)(p[s + 8] >> 4 | (p[s + 4] >> 6) << 4);
        }
        for (int part = 0; part < 4; part++)
            for (int i = 0; i < 32; i++) {
                codes[64 * part + i] = q[32 * part + i] & 15;
                codes[64 * part + 32 + i] = q[32 * part + i] >> 4;
            }
    }
    return -1;
}

/* ql[128] low nibbles, qh[64] two high bits, 16 signed scales, d. */
static int64_t decode_q6_k(const uint8_t *src, int64_t row, qe_qtensor *t) {
    uint8_t *codes = codes_of(t, row);
    int64_t blocks = t->k / 256;
    uint8_t *scales = (uint8_t *)t->scales + row * blocks * 16;
    uint16_t *super = (uint16_t *)t->super + row * blocks;
    for (int64_t b = 0; b < blocks; b++, src += 210, codes += 256, scales += 16) {
        super[b] = u16_at(src + 208);
        if (f16_unusable(super[b])) return b * 256;
        memcpy(scales, src + 192, 16);
        for (int half = 0; half < 2; half++) {
            const uint8_t *ql = src + 64 * half, *qh = src + 128 + 32 * half;
            uint8_t *out = codes + 128 * half;
            for (int i = 0; i < 32; i++) {
                out[i] = (uint8_t)((ql[i] & 15) | (qh[i] & 3) << 4);
                out[i + 32] = (uint8_t)((ql[i + 32] & 15) | (qh[i] >> 2 & 3) << 4);
                out[i + 64] = (uint8_t)(ql[i] >> 4 | (qh[i] >> 4 & 3) << 4);
                out[i + 96] = (uint8_t)(ql[i + 32] >> 4 | (qh[i] >> 6 & 3) << 4);
            }
        }
    }
    return -1;
}

/* ---- the tables ----------------------------------------------------------------------------------------------- */
#define FLOAT(code_, bits_) {.code = QE_CODE_##code_, .bits = bits_}
#define BLOCK32(bits_, zero_) \
    {.code = QE_CODE_INT, .bits = bits_, .scale = QE_NUM_F16, .zero_const = zero_, .group_n = 1, .group_k = 32}

static const struct { uint32_t id; qe_store_type type; } gguf_types[] = {
    {0, {"F32", 1, 4, FLOAT(F32, 32), decode_f32}},
    {1, {"F16", 1, 2, FLOAT(F16, 16), decode_f16}},
    {30, {"BF16", 1, 2, FLOAT(BF16, 16), decode_bf16}},
    {2, {"Q4_0", 32, 18, BLOCK32(4, 8), decode_q4_0}},
    {6, {"Q5_0", 32, 22, BLOCK32(5, 16), decode_q5_0}},
    {8, {"Q8_0", 32, 34, BLOCK32(8, 128), decode_q8_0}},
    {20, {"IQ4_NL", 32, 18, {.code = QE_CODE_IQ4NL, .bits = 4, .scale = QE_NUM_F16, .group_n = 1, .group_k = 32}, decode_q4_0}},
    {12, {"Q4_K", 256, 144,
          {.code = QE_CODE_INT, .bits = 4, .scale = QE_NUM_U6, .super = QE_NUM_F16, .zero = QE_ZERO_REAL,
           .zero_num = QE_NUM_U6, .group_n = 1, .group_k = 32, .super_n = 1, .super_k = 256}, decode_q4_k}},
    {14, {"Q6_K", 256, 210,
          {.code = QE_CODE_INT, .bits = 6, .scale = QE_NUM_S8, .super = QE_NUM_F16, .zero_const = 32, .group_n = 1,
           .group_k = 16, .super_n = 1, .super_k = 256}, decode_q6_k}},
    /* Listed, and refused by name when read. */
    {3, {.name = "Q4_1", .block = 32, .block_bytes = 20}},
    {7, {.name = "Q5_1", .block = 32, .block_bytes = 24}},
    {9, {.name = "Q8_1", .block = 32, .block_bytes = 36}},
    {10, {.name = "Q2_K", .block = 256, .block_bytes = 84}},
    {11, {.name = "Q3_K", .block = 256, .block_bytes = 110}},
    {13, {.name = "Q5_K", .block = 256, .block_bytes = 176}},
    {15, {.name = "Q8_K", .block = 256, .block_bytes = 292}},
    {16, {.name = "IQ2_XXS", .block = 256, .block_bytes = 66}},
    {17, {.name = "IQ2_XS", .block = 256, .block_bytes = 74}},
    {18, {.name = "IQ3_XXS", .block = 256, .block_bytes = 98}},
    {19, {.name = "IQ1_S", .block = 256, .block_bytes = 50}},
    {21, {.name = "IQ3_S", .block = 256, .block_bytes = 110}},
    {22, {.name = "IQ2_S", .block = 256, .block_bytes = 82}},
    {23, {.name = "IQ4_XS", .block = 256, .block_bytes = 136}},
    {24, {.name = "I8", .block = 1, .block_bytes = 1}},
    {25, {.name = "I16", .block = 1, .block_bytes = 2}},
    {26, {.name = "I32", .block = 1, .block_bytes = 4}},
    {27, {.name = "I64", .block = 1, .block_bytes = 8}},
    {28, {.name = "F64", .block = 1, .block_bytes = 8}},
    {29, {.name = "IQ1_M", .block = 256, .block_bytes = 56}},
    {34, {.name = "TQ1_0", .block = 256, .block_bytes = 54}},
    {35, {.name = "TQ2_0", .block = 256, .block_bytes = 66}},
    {39, {.name = "MXFP4", .block = 32, .block_bytes = 17}},
    {40, {.name = "NVFP4", .block = 64, .block_bytes = 36}},
    {41, {.name = "Q1_0", .block = 128, .block_bytes = 18}},
    {42, {.name = "Q2_0", .block = 64, .block_bytes = 18}},
};
static const uint8_t retired_types[] = {4, 5, 31, 32, 33, 36, 37, 38};

const qe_store_type *qe_gguf_type(uint32_t id, bool *retired) {
    *retired = false;
    for (size_t i = 0; i < sizeof retired_types; i++) *retired |= retired_types[i] == id;
    for (size_t i = 0; i < sizeof gguf_types / sizeof gguf_types[0]; i++)
        if (gguf_types[i].id == id) return &gguf_types[i].type;
    return NULL;
}

uint32_t qe_gguf_type_id(const char *name) {
    size_t i = 0;
    while (i + 1 < sizeof gguf_types / sizeof gguf_types[0] && strcmp(gguf_types[i].type.name, name)) i++;
    return gguf_types[i].id;
}

const qe_store_type *qe_gguf_type_of(const qe_quant *quant) {
    for (size_t i = 0; i < sizeof gguf_types / sizeof gguf_types[0]; i++)
        if (gguf_types[i].type.decode && !memcmp(&gguf_types[i].type.quant, quant, sizeof *quant))
            return &gguf_types[i].type;
    return NULL;
}

/* Sub-byte types count elements to a whole number of bytes. */
static const qe_store_type safetensors_types[] = {
    {"F32", 1, 4, FLOAT(F32, 32), decode_f32},
    {"F16", 1, 2, FLOAT(F16, 16), decode_f16},
    {"BF16", 1, 2, FLOAT(BF16, 16), decode_bf16},
    {.name = "BOOL", .block = 1, .block_bytes = 1}, {.name = "U8", .block = 1, .block_bytes = 1},
    {.name = "I8", .block = 1, .block_bytes = 1}, {.name = "F8_E4M3", .block = 1, .block_bytes = 1},
    {.name = "F8_E5M2", .block = 1, .block_bytes = 1}, {.name = "F8_E8M0", .block = 1, .block_bytes = 1},
    {.name = "F8_E4M3FNUZ", .block = 1, .block_bytes = 1}, {.name = "F8_E5M2FNUZ", .block = 1, .block_bytes = 1},
    {.name = "I16", .block = 1, .block_bytes = 2}, {.name = "U16", .block = 1, .block_bytes = 2},
    {.name = "I32", .block = 1, .block_bytes = 4}, {.name = "U32", .block = 1, .block_bytes = 4},
    {.name = "I64", .block = 1, .block_bytes = 8}, {.name = "U64", .block = 1, .block_bytes = 8},
    {.name = "F64", .block = 1, .block_bytes = 8}, {.name = "C64", .block = 1, .block_bytes = 8},
    {.name = "F4", .block = 2, .block_bytes = 1}, {.name = "F6_E2M3", .block = 4, .block_bytes = 3},
    {.name = "F6_E3M2", .block = 4, .block_bytes = 3},
};

const qe_store_type *qe_safetensors_type(const char *name) {
    for (size_t i = 0; i < sizeof safetensors_types / sizeof safetensors_types[0]; i++)
        if (!strcmp(safetensors_types[i].name, name)) return &safetensors_types[i];
    return NULL;
}
