/* scheme_text.c -- descriptors as text: CODE[:GROUP:SCALE[^LOG2]][:s=SUPER/GROUP][:z=CONST or TYPE][:b=TYPE][:t=ROWS].
 * GROUP is tensor, channel, g128 (along k), or 128x128 (rows x columns, 0 the whole dimension); d= in place of s=
 * divides by the super scale; z= is left out when it is the middle code, 2^(bits-1). */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/scheme_internal.h"

static const char *const num_names[] = {"one", "f32", "f16", "bf16", "e8m0", "e4m3",
                                        "u8",  "s8",  "u6",  "s6",   "u4",   "pow2n"};
static const char *const code_names[] = {"none", "f32",  "f16",  "bf16",  "int",  "lut",  "sign",
                                         "nf4",  "fp4b", "iq4nl", "e2m1", "e4m3", "e5m2"};
enum { NUM_COUNT = sizeof num_names / sizeof num_names[0], CODE_COUNT = sizeof code_names / sizeof code_names[0] };

static int middle(const qe_quant *q) { return q->code == QE_CODE_INT ? 1 << q->bits >> 1 : 0; }

/* ---- out --------------------------------------------------------------------------------------------------------- */
typedef struct text_out {
    char  *text;
    size_t bytes, length;
} text_out;

static void put(text_out *o, const char *format, ...) QE_PRINTF(2, 3);
static void put(text_out *o, const char *format, ...) {
    va_list args;
    va_start(args, format);
    size_t room = o->length < o->bytes ? o->bytes - o->length : 0;
    int wrote = vsnprintf(room ? o->text + o->length : NULL, room, format, args);
    va_end(args);
    if (wrote > 0) o->length += (size_t)wrote;
}

static void put_group(text_out *o, int32_t n, int32_t k) {
    if (!n && !k) put(o, "tensor");
    else if (n == 1 && !k) put(o, "channel");
    else if (n == 1) put(o, "g%d", k);
    else put(o, "%dx%d", n, k);
}

static const char *num_name(int num) { return num >= 0 && num < NUM_COUNT ? num_names[num] : "?"; }

size_t qe_quant_name(const qe_quant *q, char *text, size_t text_bytes) {
    text_out o = {text, text_bytes, 0};
    if (text_bytes) text[0] = 0;
    put(&o, "%s", q->code < CODE_COUNT ? code_names[q->code] : "?");
    if (q->code == QE_CODE_INT || q->code == QE_CODE_LUT) put(&o, "%d", q->bits);
    if (q->scale != QE_NUM_ONE || q->super != QE_NUM_ONE || q->zero != QE_ZERO_CONST || q->scale_log2) {
        put(&o, ":");
        put_group(&o, q->group_n, q->group_k);
        put(&o, ":%s", num_name(q->scale));
        if (q->scale_log2) put(&o, "^%d", q->scale_log2);
    }
    if (q->super != QE_NUM_ONE) {
        put(&o, ":%c=%s/", q->flags & QE_SUPER_DIVIDES ? 'd' : 's', num_name(q->super));
        put_group(&o, q->super_n, q->super_k);
    }
    if (q->zero == QE_ZERO_POINT) put(&o, ":z=%s", num_name(q->zero_num));
    else if (q->zero == QE_ZERO_REAL) put(&o, ":b=%s", num_name(q->zero_num));
    else if (q->zero_const != middle(q)) put(&o, ":z=%d", q->zero_const);
    if (q->lut_n) put(&o, ":t=%d", q->lut_n);
    return o.length;
}

/* ---- in ---------------------------------------------------------------------------------------------------------- */
/* Digits only, at most 2^30; *end is after them. False if there are none. */
static bool number(const char *text, const char **end, int32_t *out) {
    int64_t v = 0;
    const char *p = text;
    while (*p >= '0' && *p <= '9' && v <= 1 << 30) v = v * 10 + (*p++ - '0');
    if (p == text || v > 1 << 30) return false;
    *out = (int32_t)v;
    *end = p;
    return true;
}

static bool parse_num(const char *word, uint8_t *out) {
    for (int i = 0; i < NUM_COUNT; i++) {
        if (!strcmp(word, num_names[i])) {
            *out = (uint8_t)i;
            return true;
        }
    }
    return false;
}

static bool parse_code(const char *word, qe_quant *q) {
    for (int i = 1; i < CODE_COUNT; i++) {
        size_t length = strlen(code_names[i]);
        if (strncmp(word, code_names[i], length)) continue;
        q->code = (uint8_t)i;
        if (i == QE_CODE_INT || i == QE_CODE_LUT) {
            const char *end;
            int32_t bits;
            if (!number(word + length, &end, &bits) || *end || bits < 1 || bits > 8) return false;
            q->bits = (uint8_t)bits;
            return true;
        }
        static const uint8_t fixed[] = {0, 32, 16, 16, 0, 0, 1, 4, 4, 4, 4, 8, 8};
        q->bits = fixed[i];
        if (!word[length]) return true;
    }
    return false;
}

static bool parse_group(const char *word, int32_t *n, int32_t *k) {
    const char *end;
    *n = *k = 0;
    if (!strcmp(word, "tensor")) return true;
    *n = 1;
    if (!strcmp(word, "channel")) return true;
    if (*word == 'g') return number(word + 1, &end, k) && !*end && *k > 0;
    return number(word, &end, n) && *end == 'x' && number(end + 1, &end, k) && !*end;
}

/* The scale field: TYPE or TYPE^LOG2. Cuts `word` at the caret. */
static bool parse_scale(char *word, qe_quant *q) {
    char *caret = strchr(word, '^');
    if (caret) {
        const char *end;
        int32_t v;
        bool minus = caret[1] == '-';
        *caret = 0;
        if (!number(caret + 1 + minus, &end, &v) || *end || v > 64) return false;
        q->scale_log2 = (int16_t)(minus ? -v : v);
    }
    return parse_num(word, &q->scale);
}

static bool parse_option(char *word, qe_quant *q) {
    const char *end;
    int32_t v;
    if (!word[0] || word[1] != '=') return false;
    char *value = word + 2;
    switch (word[0]) {
    case 's':
    case 'd': {
        char *slash = strchr(value, '/');
        if (!slash) return false;
        *slash = 0;
        if (word[0] == 'd') q->flags |= QE_SUPER_DIVIDES;
        return parse_num(value, &q->super) && parse_group(slash + 1, &q->super_n, &q->super_k);
    }
    case 'z':
        q->zero_const = 0;
        if (number(value, &end, &v)) {
            if (*end || v > 256) return false;
            q->zero_const = (int16_t)v;
            return true;
        }
        q->zero = QE_ZERO_POINT;
        return parse_num(value, &q->zero_num);
    case 'b':
        q->zero_const = 0;
        q->zero = QE_ZERO_REAL;
        return parse_num(value, &q->zero_num);
    case 't': return number(value, &end, &q->lut_n) && !*end;
    default: return false;
    }
}

qe_status qe_quant_parse(const char *text, qe_quant *out, qe_error *err) {
    char copy[128], shown[160];
    if (!text || !out) return qe_error_set(err, QE_E_ARGUMENT, "text or out is NULL");
    size_t length = strlen(text);
    qe_escape(text, length, shown, sizeof shown);
    if (length >= sizeof copy) return qe_error_set(err, QE_E_ARGUMENT, "quantization '%s' is too long", shown);
    memcpy(copy, text, length + 1);
    qe_quant q;
    memset(&q, 0, sizeof q);
    char *next = copy;
    for (int field = 0; next; field++) {
        char *word = next;
        next = strchr(next, ':');
        if (next) *next++ = 0;
        bool ok, option = word[0] && word[1] == '=';
        if (field == 0) {
            ok = parse_code(word, &q);
            q.zero_const = (int16_t)middle(&q);
        } else if (field == 1 && !option) {
            ok = next && parse_group(word, &q.group_n, &q.group_k);
        } else if (field == 2 && !option) {
            ok = parse_scale(word, &q);
        } else {
            ok = parse_option(word, &q);
        }
        if (!ok)
            return qe_error_set(err, QE_E_ARGUMENT, "quantization '%s': field %d is not like int4:g128:f16:z=u8", shown,
                                field + 1);
    }
    QE_TRY(qe_quant_check(&q, 0, 0, err));
    *out = q;
    return QE_OK;
}
