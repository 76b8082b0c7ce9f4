/* write_gguf_weights.c -- canonical weights as GGUF blocks: the inverse of wts_gguf.c. */
#include <stdlib.h>
#include <string.h>

#include "format/store_internal.h"
#include "format/write_weights.h"

static void put_u16(uint8_t *p, uint16_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static void encode_q4_0(const qe_qtensor *t, int64_t row, uint8_t *out) {
    const uint8_t *codes = (const uint8_t *)t->codes + row * t->k;
    const uint16_t *scales = (const uint16_t *)t->scales + row * (t->k / 32);
    for (int64_t b = 0; b < t->k / 32; b++, out += 18, codes += 32) {
        put_u16(out, scales[b]);
        for (int i = 0; i < 16; i++) out[2 + i] = (uint8_t)(codes[i] | codes[i + 16] << 4);
    }
}

static void encode_q5_0(const qe_qtensor *t, int64_t row, uint8_t *out) {
    const uint8_t *codes = (const uint8_t *)t->codes + row * t->k;
    const uint16_t *scales = (const uint16_t *)t->scales + row * (t->k / 32);
    for (int64_t b = 0; b < t->k / 32; b++, out += 22, codes += 32) {
        uint32_t high = 0;
        put_u16(out, scales[b]);
        for (int i = 0; i < 32; i++) high |= (uint32_t)(codes[i] >> 4) << i;
        put_u16(out + 2, (uint16_t)high);
        put_u16(out + 4, (uint16_t)(high >> 16));
        for (int i = 0; i < 16; i++) out[6 + i] = (uint8_t)((codes[i] & 15) | (codes[i + 16] & 15) << 4);
    }
}

static void encode_q8_0(const qe_qtensor *t, int64_t row, uint8_t *out) {
    const uint8_t *codes = (const uint8_t *)t->codes + row * t->k;
    const uint16_t *scales = (const uint16_t *)t->scales + row * (t->k / 32);
    for (int64_t b = 0; b < t->k / 32; b++, out += 34, codes += 32) {
        put_u16(out, scales[b]);
        for (int i = 0; i < 32; i++) out[2 + i] = codes[i] ^ 0x80;
    }
}

/* The file keeps dmin, the canonical second level of the minimum is -dmin. */
static void encode_q4_k(const qe_qtensor *t, int64_t row, uint8_t *out) {
    const uint8_t *codes = (const uint8_t *)t->codes + row * t->k;
    int64_t blocks = t->k / 256;
    const uint8_t *scales = (const uint8_t *)t->scales + row * blocks * 8, *mins = (const uint8_t *)t->zeros + row * blocks * 8;
    const uint16_t *super = (const uint16_t *)t->super + row * blocks, *zero_super = (const uint16_t *)t->zero_super + row * blocks;
    for (int64_t b = 0; b < blocks; b++, out += 144, codes += 256, scales += 8, mins += 8) {
        put_u16(out, super[b]);
        put_u16(out + 2, zero_super[b] ^ 0x8000);
        uint8_t *p = out + 4, *q = out + 16;
        for (int s = 0; s < 4; s++) {
            p[s] = (uint8_t)(scales[s] | (scales[s + 4] >> 4) << 6);
            p[s + 4] = (uint8_t)(mins[s] | (mins[s + 4] >> 4) << 6);
            p[s + 8] = (uint8_t)((scales[s + 4] & 15) | (mins[s + 4] & 15) << 4);
        }
        for (int part = 0; part < 4; part++)
            for (int i = 0; i < 32; i++) q[32 * part + i] = (uint8_t)(codes[64 * part + i] | codes[64 * part + 32 + i] << 4);
    }
}

static void encode_q6_k(const qe_qtensor *t, int64_t row, uint8_t *out) {
    const uint8_t *codes = (const uint8_t *)t->codes + row * t->k;
    int64_t blocks = t->k / 256;
    const uint8_t *scales = (const uint8_t *)t->scales + row * blocks * 16;
    const uint16_t *super = (const uint16_t *)t->super + row * blocks;
    for (int64_t b = 0; b < blocks; b++, out += 210, codes += 256, scales += 16) {
        put_u16(out + 208, super[b]);
        memcpy(out + 192, scales, 16);
        for (int half = 0; half < 2; half++) {
            uint8_t *ql = out + 64 * half, *qh = out + 128 + 32 * half;
            const uint8_t *c = codes + 128 * half;
            for (int i = 0; i < 32; i++) {
                ql[i] = (uint8_t)((c[i] & 15) | (c[i + 64] & 15) << 4);
                ql[i + 32] = (uint8_t)((c[i + 32] & 15) | (c[i + 96] & 15) << 4);
                qh[i] = (uint8_t)(c[i] >> 4 | c[i + 32] >> 4 << 2 | c[i + 64] >> 4 << 4 | c[i + 96] >> 4 << 6);
            }
        }
    }
}

static void encode_float(const qe_qtensor *t, int64_t row, uint8_t *out) {
    size_t bytes = (size_t)t->k * (t->quant.code == QE_CODE_F32 ? 4 : 2);
    memcpy(out, (const char *)t->codes + (size_t)row * bytes, bytes);
}

static const struct { const char *type; void (*encode)(const qe_qtensor *t, int64_t row, uint8_t *out); } encoders[] = {
    {"F32", encode_float}, {"F16", encode_float}, {"BF16", encode_float}, {"Q4_0", encode_q4_0}, {"Q5_0", encode_q5_0},
    {"Q8_0", encode_q8_0}, {"IQ4_NL", encode_q4_0}, {"Q4_K", encode_q4_k}, {"Q6_K", encode_q6_k},
};
enum { ENCODERS = sizeof encoders / sizeof encoders[0] };

static qe_status check(const qe_weight_out *w, qe_error *err) {
    const qe_store_type *type = qe_gguf_type_of(&w->form.quant);
    char text[96];
    if (type && w->form.k % type->block == 0 && !w->form.order && !w->form.col_scale && !w->form.hadamard) return QE_OK;
    qe_quant_name(&w->form.quant, text, sizeof text);
    if (!type) return qe_error_set(err, QE_E_UNSUPPORTED, "%s: no GGUF type is %s", w->module, text);
    if (w->form.k % type->block)
        return qe_error_set(err, QE_E_SHAPE, "%s: %lld inputs are no whole %s blocks of %d", w->module, (long long)w->form.k,
                            type->name, type->block);
    return qe_error_set(err, QE_E_UNSUPPORTED, "%s: GGUF holds no column order, scale or rotation", w->module);
}

static qe_status declare(qe_out *out, qe_weight_out *w, qe_error *err) {
    const qe_store_type *type = qe_gguf_type_of(&w->form.quant);
    const int64_t dims[2] = {w->form.rows, w->form.k};
    bool vector = w->form.rows == 1;
    uint64_t bytes = (uint64_t)w->form.rows * (uint64_t)(w->form.k / type->block) * (uint64_t)type->block_bytes;
    return qe_out_declare(out, w->module, type->name, vector ? 1 : 2, vector ? dims + 1 : dims, bytes, &w->index[0], err);
}

static qe_status put(qe_out *out, const qe_weight_out *w, const qe_qtensor *t, qe_error *err) {
    const qe_store_type *type = qe_gguf_type_of(&t->quant);
    size_t row_bytes = (size_t)(t->k / type->block) * (size_t)type->block_bytes;
    int i = 0;
    while (i + 1 < ENCODERS && strcmp(encoders[i].type, type->name)) i++;
    uint8_t *row = malloc(row_bytes + 1);
    if (!row) return qe_out_nomem(out, err);
    qe_status status = QE_OK;
    for (int64_t n = 0; n < t->n && !status; n++) {
        int64_t to = w->row_map ? w->row_map[t->first_row + n] : t->first_row + n;
        encoders[i].encode(t, n, row);
        status = qe_out_put(out, w->index[0], (uint64_t)to * row_bytes, row, row_bytes, err);
    }
    free(row);
    return status;
}

static json_t *settings(const qe_weight_out *weights, int64_t count, const char *const *plain, int64_t plain_count) {
    (void)weights, (void)count, (void)plain, (void)plain_count;
    return json_object();
}

const qe_weight_format qe_format_gguf = {"gguf", "llama.cpp: Q4_0, Q5_0, Q8_0, IQ4_NL, Q4_K, Q6_K, F16 in one file", QE_OUT_GGUF,
                                         check, declare, put, settings};
