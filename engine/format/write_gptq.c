/* write_gptq.c -- GPTQ: symmetric weights as version 1, which every reader knows; weights with zero points as version 2, since
 * version 1 stores z - 1 and readers disagree about zero points of 0. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/write_weights.h"

enum { CODES, ZEROS, SCALES, ORDER };

static qe_status check(const qe_weight_out *w, qe_error *err) {
    const qe_quant *q = &w->form.quant;
    const char *why = NULL;
    if (q->code != QE_CODE_INT || (q->bits != 2 && q->bits != 3 && q->bits != 4 && q->bits != 8)) why = "2, 3, 4 or 8 bits";
    else if (q->super != QE_NUM_ONE || q->scale_log2 || (q->scale != QE_NUM_F16 && q->scale != QE_NUM_BF16))
        why = "one level of fp16 or bf16 scales";
    else if (q->zero == QE_ZERO_REAL || (q->zero == QE_ZERO_POINT && q->zero_num != QE_NUM_U8) ||
             (q->zero == QE_ZERO_CONST && q->zero_const != 1 << q->bits >> 1))
        why = "symmetric codes or integer zero points";
    else if (q->group_n != 1 || (q->group_k && w->form.k % q->group_k)) why = "scales by channel, or whole groups of inputs";
    else if (w->form.k * q->bits % 32 || w->form.rows * q->bits % 32) why = "sizes that fill 32-bit words";
    else if (w->form.col_scale || w->form.hadamard) why = "no column scales or rotations";
    else if (w->form.act.mode != QE_ACT_FLOAT) why = "float inputs";
    return why ? qe_error_set(err, QE_E_UNSUPPORTED, "%s: GPTQ holds %s", w->module, why) : QE_OK;
}

static qe_status declare(qe_out *out, qe_weight_out *w, qe_error *err) {
    const qe_quant *q = &w->form.quant;
    int64_t n = w->form.rows, k = w->form.k, groups = qe_weight_groups(k, q->group_k);
    QE_TRY(qe_weight_declare(out, w, CODES, ".qweight", "I32", 2, k * q->bits / 32, n, 32, err));
    QE_TRY(qe_weight_declare(out, w, ZEROS, ".qzeros", "I32", 2, groups, n * q->bits / 32, 32, err));
    QE_TRY(qe_weight_declare(out, w, SCALES, ".scales", qe_weight_scale_type(q), 2, groups, n, 16, err));
    return qe_weight_declare(out, w, ORDER, ".g_idx", "I32", 1, 1, k, 32, err);
}

/* Version 1 subtracts one: from whole words where fields fill them, else from each field. */
static void encode_zeros(const qe_qtensor *t, int64_t groups, bool first_version, uint32_t *words) {
    const qe_quant *q = &t->quant;
    int64_t per_group = t->n * q->bits / 32;
    uint32_t mask = (1u << q->bits) - 1u, ones = q->bits == 2 ? 0x55555555u : q->bits == 4 ? 0x11111111u : 0x01010101u;
    bool straddles = 32 % q->bits != 0;
    for (int64_t g = 0; g < groups; g++) {
        uint32_t *to = words + g * per_group;
        for (int64_t n = 0; n < t->n; n++) {
            uint32_t z = q->zero == QE_ZERO_POINT ? ((const uint8_t *)t->zeros)[n * groups + g] : (uint32_t)q->zero_const;
            qe_weight_field(to, 1, n, q->bits, (first_version && straddles ? z - 1u : z) & mask);
        }
        for (int64_t i = 0; first_version && !straddles && i < per_group; i++) to[i] -= ones;
    }
}

static qe_status put_part(qe_out *out, int64_t index, const void *data, qe_error *err) {
    return qe_out_put(out, index, 0, data, (size_t)qe_out_bytes(out, index), err);
}

static qe_status put(qe_out *out, const qe_weight_out *w, const qe_qtensor *t, qe_error *err) {
    const qe_quant *q = &t->quant;
    int64_t groups = qe_weight_groups(t->k, q->group_k);
    uint32_t *words = calloc(1, (size_t)qe_out_bytes(out, w->index[CODES]) + 8);
    uint32_t *zeros = calloc(1, (size_t)qe_out_bytes(out, w->index[ZEROS]) + 8);
    uint16_t *scales = malloc((size_t)(groups * t->n) * 2);
    int32_t *order = malloc((size_t)t->k * sizeof *order);
    qe_status status = words && zeros && scales && order ? QE_OK : qe_out_nomem(out, err);
    if (!status) {
        for (int64_t n = 0; n < t->n; n++) {
            const uint8_t *codes = (const uint8_t *)t->codes + n * t->k;
            for (int64_t j = 0; j < t->k; j++) qe_weight_field(words + n, t->n, t->order ? t->order[j] : j, q->bits, codes[j]);
            for (int64_t g = 0; g < groups; g++) scales[g * t->n + n] = ((const uint16_t *)t->scales)[n * groups + g];
        }
        encode_zeros(t, groups, q->zero == QE_ZERO_CONST, zeros);
        qe_weight_group_index(t, order);
        status = put_part(out, w->index[CODES], words, err);
    }
    if (!status) status = put_part(out, w->index[ZEROS], zeros, err);
    if (!status) status = put_part(out, w->index[SCALES], scales, err);
    if (!status) status = put_part(out, w->index[ORDER], order, err);
    free(words);
    free(zeros);
    free(scales);
    free(order);
    return status;
}

/* ---- settings ------------------------------------------------------------------------------------------------------ */
/* "+:^name$" with what a pattern would read otherwise escaped. */
static void rule_name(const char *sign, const char *module, char *text, size_t bytes) {
    size_t at = (size_t)snprintf(text, bytes, "%s:^", sign);
    for (; *module && at + 4 < bytes; module++) {
        if (strchr(".[]()*+?|{}^$\\", *module)) text[at++] = '\\';
        text[at++] = *module;
    }
    text[at++] = '$';
    text[at] = 0;
}

static int group_size(const qe_weight_out *w) { return w->form.quant.group_k ? w->form.quant.group_k : -1; }
static int symmetric(const qe_weight_out *w) { return w->form.quant.zero == QE_ZERO_CONST; }

/* The first weight's settings are everyone's; others that differ are overridden by name. */
static json_t *settings(const qe_weight_out *weights, int64_t count, const char *const *plain, int64_t plain_count) {
    char text[2400];
    json_t *rules = json_object();
    bool ok = rules != NULL && count > 0, head = false, ordered = false;
    for (int64_t i = 0; i < count; i++) {
        head |= !strcmp(weights[i].module, "lm_head");
        ordered |= weights[i].form.order != NULL;
    }
    for (int64_t i = 0; i < plain_count && ok; i++) {
        if (!strcmp(plain[i], "lm_head")) continue;
        rule_name("-", plain[i], text, sizeof text);
        ok = !json_object_set_new(rules, text, json_object());
    }
    for (int64_t i = 1; i < count && ok; i++) {
        const qe_quant *q = &weights[i].form.quant;
        if (!memcmp(q, &weights[0].form.quant, sizeof *q)) continue;
        rule_name("+", weights[i].module, text, sizeof text);
        ok = !json_object_set_new(rules, text, json_pack("{s:i, s:i, s:b}", "bits", q->bits, "group_size",
                                                         group_size(&weights[i]), "sym", symmetric(&weights[i])));
    }
    json_t *out = ok ? json_pack("{s:s, s:i, s:i, s:b, s:b, s:s, s:b, s:s}", "quant_method", "gptq", "bits",
                                 weights[0].form.quant.bits, "group_size", group_size(&weights[0]), "sym",
                                 symmetric(&weights[0]), "desc_act", ordered, "checkpoint_format",
                                 symmetric(&weights[0]) ? "gptq" : "gptq_v2", "lm_head", head, "pack_dtype", "int32")
                     : NULL;
    if (out && json_object_size(rules)) json_object_set(out, "dynamic", rules);
    json_decref(rules);
    return out;
}

const qe_weight_format qe_format_gptq = {"gptq", "GPTQModel, vLLM, transformers: 2, 3, 4, 8 bits, float inputs",
                                         QE_OUT_SAFETENSORS, check, declare, put, settings};
