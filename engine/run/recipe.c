/* recipe.c -- recipes: one line or JSON, and what they decide for a module. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "format/packed.h"
#include "run/recipe_internal.h"

typedef struct rule {
    char       *match;
    qe_decision decision;
} rule;

struct qe_recipe {
    qe_decision base;
    rule       *rules;
    size_t      count;
};

/* ---- schemes and methods --------------------------------------------------------------------------------------------- */
static qe_status unknown(const char *what, const char *text, const char *help, qe_error *err) {
    char shown[80];
    return qe_error_set(err, QE_E_ARGUMENT, "no such %s: %s; %s", what, qe_escape(text, strlen(text), shown, sizeof shown),
                        help);
}

static void dynamic_input(qe_act *act, const char *text) {
    qe_quant_parse(text, &act->quant, NULL);
    act->mode = QE_ACT_DYNAMIC;
}

static qe_status set_scheme(qe_decision *d, const char *text, qe_error *err) {
    memset(&d->act, 0, sizeof d->act);
    snprintf(d->scheme, sizeof d->scheme, "%s", text);
    const qe_scheme *named = qe_scheme_find(text);
    d->full_range = named ? named->full_range : 0;
    if (named) {
        QE_TRY(qe_quant_parse(named->weight, &d->quant, err));
        if (named->input) dynamic_input(&d->act, named->input);
        d->method = named->method;
    } else {
        char copy[128];
        const char *at = strchr(text, '@');
        bool bits8 = at && !strcmp(at, "@a8"), signs = at && !strcmp(at, "@a1");
        size_t bytes = bits8 || signs ? (size_t)(at - text) : strlen(text);
        if (bytes >= sizeof copy) return unknown("scheme", text, "it is too long", err);
        memcpy(copy, text, bytes);
        copy[bytes] = 0;
        if (qe_quant_parse(copy, &d->quant, NULL))
            return unknown("scheme", text, "a name of the list, or a descriptor like int4:g64:f16:z=u8", err);
        if (bits8 || signs) dynamic_input(&d->act, signs ? "sign:channel:f32" : "int8:channel:f32");
        d->method = d->quant.code == QE_CODE_LUT ? QE_METHOD_KMEANS : QE_METHOD_RTN;
    }
    d->keep = d->quant.code == QE_CODE_F32 || d->quant.code == QE_CODE_F16 || d->quant.code == QE_CODE_BF16;
    snprintf(d->how, sizeof d->how, "%s", qe_method_name(d->method));
    return QE_OK;
}

/* Parts joined by +: transforms, then one rounding method. */
static qe_status set_method(qe_decision *d, const char *text, qe_error *err) {
    char copy[48];
    if (strlen(text) >= sizeof copy) return unknown("method", text, "it is too long", err);
    memcpy(copy, text, strlen(text) + 1);
    snprintf(d->how, sizeof d->how, "%s", text);
    d->smooth = d->rotate = d->order = 0;
    bool rounding = false;
    for (char *part = copy, *next; part; part = next) {
        next = strchr(part, '+');
        if (next) *next++ = 0;
        int32_t method = strcmp(part, "gptq-order") ? qe_method_find(part) : QE_METHOD_GPTQ;
        if (!strcmp(part, "awq")) d->smooth = QE_SMOOTH_AWQ;
        else if (!strcmp(part, "smoothquant")) d->smooth = QE_SMOOTH_QUANT;
        else if (!strcmp(part, "rotate")) d->rotate = 1;
        else if (method < 0 || rounding)
            return unknown("method", text, "rtn, gptq, gptq-order, adaround, kmeans, twn, ttq, absmean, binary, stochastic, "
                           "after awq+, smoothquant+ or rotate+", err);
        else {
            d->method = method;
            d->order = strcmp(part, "gptq-order") ? QE_ORDER_NONE : QE_ORDER_GROUPS;
            rounding = true;
        }
    }
    if (d->smooth && d->rotate) return unknown("method", text, "column scales and rotation exclude each other", err);
    return QE_OK;
}

/* ---- JSON ------------------------------------------------------------------------------------------------------------ */
static qe_status read_members(const json_t *object, qe_decision *d, const char *method, qe_error *err) {
    const char *scheme, *how, *range;
    bool fixed;
    QE_TRY(qe_json_string_or(object, "scheme", NULL, &scheme, err));
    QE_TRY(qe_json_string_or(object, "method", NULL, &how, err));
    QE_TRY(qe_json_string_or(object, "range", NULL, &range, err));
    QE_TRY(qe_json_bool_or(object, "static", d->act.mode == QE_ACT_STATIC, &fixed, err));
    if (scheme) QE_TRY(set_scheme(d, scheme, err));
    if (method) how = method;
    if (how) QE_TRY(set_method(d, how, err));
    if (range && (d->range = qe_range_method_find(range)) < 0)
        return unknown("range", range, "minmax, percentile, mse, octav, output", err);
    bool signs = d->act.mode != QE_ACT_FLOAT && d->act.quant.code == QE_CODE_SIGN;
    if (fixed && d->act.mode != QE_ACT_FLOAT && (!signs || json_object_get(object, "static"))) {
        if (signs)
            return qe_error_set(err, QE_E_UNSUPPORTED, "sign inputs have no static scale: leave \"static\" out");
        d->act.mode = QE_ACT_STATIC;
        d->act.quant.group_n = 0;
    }
    return QE_OK;
}

static qe_status check_members(const json_t *object, const char *const *known, qe_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        const char *const *name = known;
        while (*name && strcmp(*name, key)) name++;
        if (!*name) return unknown("member of a recipe", key, "scheme, method, range, static, rules with match", err);
    }
    return QE_OK;
}

static qe_status read_rules(qe_recipe *r, const json_t *rules, const char *method, qe_error *err) {
    static const char *const known[] = {"match", "scheme", "method", "range", "static", NULL};
    if (!rules || json_is_null(rules)) return QE_OK;
    if (!json_is_array(rules)) return qe_error_set(err, QE_E_TYPE, "a recipe's rules are a list");
    r->rules = calloc(json_array_size(rules) + 1, sizeof *r->rules);
    if (!r->rules) return qe_error_set(err, QE_E_NOMEM, "no memory for a recipe");
    for (size_t i = 0; i < json_array_size(rules); i++) {
        const json_t *object = json_array_get(rules, i);
        const char *match;
        bool matches;
        if (!json_is_object(object)) return qe_error_set(err, QE_E_TYPE, "a recipe's rule is a map");
        QE_TRY(check_members(object, known, err));
        QE_TRY(qe_json_string(object, "match", &match, err));
        QE_TRY(qe_recipe_match(match, "", &matches, err));
        rule *to = &r->rules[r->count];
        to->match = malloc(strlen(match) + 1);
        if (!to->match) return qe_error_set(err, QE_E_NOMEM, "no memory for a recipe");
        memcpy(to->match, match, strlen(match) + 1);
        r->count++;
        to->decision = r->base;
        QE_TRY(read_members(object, &to->decision, method, err));
    }
    return QE_OK;
}

static qe_status read_json(qe_recipe *r, const char *text, const char *method, qe_error *err) {
    static const char *const known[] = {"scheme", "method", "range", "static", "rules", NULL};
    json_t *root = NULL;
    QE_TRY(qe_json_parse(text, strlen(text), NULL, "recipe", &root, err));
    qe_status status = json_is_object(root) ? check_members(root, known, err) : qe_error_set(err, QE_E_TYPE, "a recipe is a map");
    if (!status && !qe_json_has(root, "scheme")) status = qe_error_set(err, QE_E_MISSING, "the recipe names no scheme");
    if (!status) status = read_members(root, &r->base, method, err);
    if (!status) status = read_rules(r, json_object_get(root, "rules"), method, err);
    json_decref(root);
    return status;
}

qe_status qe_recipe_parse(const char *text, const char *method, qe_recipe **out, qe_error *err) {
    *out = NULL;
    if (!text || !*text) return qe_error_set(err, QE_E_ARGUMENT, "no recipe");
    qe_recipe *r = calloc(1, sizeof *r);
    if (!r) return qe_error_set(err, QE_E_NOMEM, "no memory for a recipe");
    while (*text == ' ' || *text == '\n' || *text == '\r' || *text == '\t') text++;
    qe_status status = *text == '{' ? read_json(r, text, method, err) : set_scheme(&r->base, text, err);
    if (!status && *text != '{' && method) status = set_method(&r->base, method, err);
    if (status) qe_recipe_free(r);
    else *out = r;
    return status;
}

void qe_recipe_free(qe_recipe *r) {
    if (!r) return;
    for (size_t i = 0; i < r->count; i++) free(r->rules[i].match);
    free(r->rules);
    free(r);
}

/* ---- deciding -------------------------------------------------------------------------------------------------------- */
static bool glob(const char *pattern, const char *text) {
    const char *star = NULL, *again = text;
    while (*text) {
        if (*pattern == '*') {
            star = pattern++;
            again = text;
        } else if (*pattern == *text) {
            pattern++;
            text++;
        } else if (star) {
            pattern = star + 1;
            text = ++again;
        } else {
            return false;
        }
    }
    while (*pattern == '*') pattern++;
    return !*pattern;
}

qe_status qe_recipe_match(const char *pattern, const char *module, bool *matches, qe_error *err) {
    if (!strncmp(pattern, "re:", 3)) return qe_module_match(pattern + 3, module, "recipe", matches, err);
    *matches = glob(pattern, module);
    return QE_OK;
}

qe_status qe_recipe_decide(const qe_recipe *r, const char *module, bool head, qe_decision *out, qe_error *err) {
    for (size_t i = 0; i < r->count; i++) {
        bool matches;
        /* A pattern that fits everything does not name the head. */
        QE_TRY(qe_recipe_match(r->rules[i].match, module, &matches, err));
        if (!matches || (head && !strcmp(r->rules[i].match, "*"))) continue;
        *out = r->rules[i].decision;
        return QE_OK;
    }
    *out = r->base;
    out->keep |= head;
    return QE_OK;
}
