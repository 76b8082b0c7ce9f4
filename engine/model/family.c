/* The list of families, and hyper-parameters by their tables. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>

#include "base/check.h"
#include "model/family.h"

static const qe_family *const families[] = {&qe_family_gemma3, &qe_family_llama};
enum { FAMILY_COUNT = sizeof families / sizeof families[0], KEY_BYTES = 160 };

/* What every family has. layers, vocab and context have their limits from the caller, checked by name below. */
static const qe_hparam_key common_keys[] = {
    {offsetof(qe_hparams, layers), QE_KEY_INT, "block_count", "num_hidden_layers", NULL, true, 0, 1, INT32_MAX},
    {offsetof(qe_hparams, hidden), QE_KEY_INT, "embedding_length", "hidden_size", NULL, true, 0, 1, 1 << 24},
    {offsetof(qe_hparams, ffn), QE_KEY_INT, "feed_forward_length", "intermediate_size", NULL, true, 0, 1, 1 << 26},
    {offsetof(qe_hparams, heads), QE_KEY_INT, "attention.head_count", "num_attention_heads", NULL, true, 0, 1, 65536},
    {offsetof(qe_hparams, kv_heads), QE_KEY_INT, "attention.head_count_kv", "num_key_value_heads", NULL, false, 0, 1,
     65536},
    {offsetof(qe_hparams, head_dim), QE_KEY_INT, "attention.key_length", "head_dim", NULL, false, 0, 2, 32768},
    {offsetof(qe_hparams, rope_dims), QE_KEY_INT, "rope.dimension_count", NULL, NULL, false, 0, 2, 32768},
    {offsetof(qe_hparams, context), QE_KEY_INT, "context_length", "max_position_embeddings", NULL, true, 0, 1,
     INT64_MAX},
    {offsetof(qe_hparams, vocab), QE_KEY_INT, "vocab_size", "vocab_size", NULL, false, 0, 1, INT32_MAX},
    {offsetof(qe_hparams, eps), QE_KEY_FLOAT, "attention.layer_norm_rms_epsilon", "rms_norm_eps", NULL, true, 0, 1e-30,
     1},
};

static bool is_gguf(const qe_model *model) {
    return qe_store_get_kind(model->store) == QE_STORE_GGUF;
}

static qe_status fail(const qe_model *model, qe_status status, const char *key, const char *what, qe_error *err) {
    return qe_error_at(err, status, qe_store_name(model->store), -1, "key \"%s\": %s", key, what);
}

/* The full GGUF key, or the HF key as it is. */
static const char *full_key(const qe_model *model, const char *gguf, const char *hf, char *text) {
    if (!is_gguf(model)) return hf;
    if (!gguf) return NULL;
    snprintf(text, KEY_BYTES, "%s.%s", model->architecture, gguf);
    return text;
}

static bool has(const qe_model *model, const char *key) {
    return key && qe_store_meta_kind(model->store, key) != QE_META_NONE;
}

qe_status qe_family_find(const qe_store *store, const char *architecture, const qe_family **out, qe_error *err) {
    char list[128] = "", text[129];
    size_t used = 0;
    for (int f = 0; f < FAMILY_COUNT; f++) {
        bool gguf = qe_store_get_kind(store) == QE_STORE_GGUF;
        const char *const *names = gguf ? &families[f]->gguf_architecture : families[f]->hf_architectures;
        for (int i = 0; i < (gguf ? 1 : 3) && names[i]; i++) {
            if (!strcmp(names[i], architecture)) {
                *out = families[f];
                return QE_OK;
            }
            int wrote = snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "", names[i]);
            if (wrote > 0 && (size_t)wrote < sizeof list - used) used += (size_t)wrote;
        }
    }
    return qe_error_at(err, QE_E_UNSUPPORTED, qe_store_name(store), -1, "architecture \"%s\"; supported are %s",
                       qe_escape(architecture, strlen(architecture), text, sizeof text), list);
}

const qe_weight_row *qe_family_row(const qe_family *family, qe_role role) {
    for (size_t i = 0; i < family->weight_count; i++)
        if (family->weights[i].role == role) return &family->weights[i];
    return NULL;
}

/* ---- single keys ---------------------------------------------------------------------------------------------- */
/* head_count and the like: one number, or an array with the same number for each layer. */
static qe_status get_per_layer(const qe_model *model, const char *key, int64_t *out, qe_error *err) {
    if (qe_store_meta_kind(model->store, key) != QE_META_ARRAY) return qe_store_get_int(model->store, key, out, err);
    qe_meta_array array;
    QE_TRY(qe_store_get_array(model->store, key, &array, err));
    if (array.kind != QE_META_INT) return fail(model, QE_E_TYPE, key, "items are not integers", err);
    if (array.count != model->hp.layers || !array.count)
        return fail(model, QE_E_MISMATCH, key, "the array does not have one item for each layer", err);
    *out = qe_meta_array_int(&array, 0);
    for (int64_t i = 0; i < array.count; i++) {
        int64_t item = qe_meta_array_int(&array, i);
        if (item < 1) return fail(model, QE_E_RANGE, key, "an item is not positive", err);
        if (item != *out) return fail(model, QE_E_UNSUPPORTED, key, "layers that differ in it are not run", err);
    }
    return QE_OK;
}

static qe_status read_key(qe_model *model, const qe_hparam_key *key, qe_error *err) {
    char text[KEY_BYTES];
    const char *name = full_key(model, key->gguf, key->hf, text);
    if (name && !has(model, name) && !is_gguf(model) && key->hf_other) name = key->hf_other;
    void *field = (char *)&model->hp + key->field;
    double value = key->fallback;
    int64_t integer = (int64_t)key->fallback;
    bool present = has(model, name);
    if (!present && key->required) return fail(model, QE_E_MISSING, name, "is missing", err);
    if (present && key->kind == QE_KEY_INT) {
        QE_TRY(get_per_layer(model, name, &integer, err));
        value = (double)integer;
    } else if (present) {
        QE_TRY(qe_store_get_float(model->store, name, &value, err));
    }
    if (present && !(value >= key->min && value <= key->max))
        return qe_error_at(err, QE_E_RANGE, qe_store_name(model->store), -1, "key \"%s\" is %g, expected %g to %g",
                           name, value, key->min, key->max);
    if (key->kind == QE_KEY_INT)
        *(int64_t *)field = integer;
    else
        *(float *)field = (float)value;
    return QE_OK;
}

static qe_status read_limited(qe_model *model, qe_error *err) {
    const qe_model_limits *limits = qe_store_limits(model->store);
    const struct {
        const char *what;
        int64_t value;
        uint64_t limit;
    } rows[] = {
        {"layers", model->hp.layers, limits->layers},
        {"vocab", model->hp.vocab, limits->vocab},
        {"context", model->hp.context, limits->context},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if ((uint64_t)rows[i].value > rows[i].limit)
            return qe_error_at(err, QE_E_LIMIT, qe_store_name(model->store), -1, "%s is %lld, the limit is %llu",
                               rows[i].what, (long long)rows[i].value, (unsigned long long)rows[i].limit);
    return QE_OK;
}

/* ---- rotation ------------------------------------------------------------------------------------------------- */
static qe_status get_positive(const qe_model *model, const char *prefix, const char *name, double min, double *out,
                              qe_error *err) {
    char key[KEY_BYTES];
    snprintf(key, sizeof key, "%s%s", prefix, name);
    QE_TRY(qe_store_get_float(model->store, key, out, err));
    if (!(*out >= min && *out <= 1e12)) return fail(model, QE_E_RANGE, key, "is not a usable positive number", err);
    return QE_OK;
}

static qe_status read_scaling(const qe_model *model, const char *prefix, qe_rope *rope, qe_error *err) {
    char key[KEY_BYTES];
    const char *type = NULL;
    size_t bytes;
    double value;
    rope->scaling = QE_ROPE_SCALE_NONE;
    rope->factor = 1;
    snprintf(key, sizeof key, "%srope_type", prefix);
    if (is_gguf(model) || !has(model, key)) snprintf(key, sizeof key, "%stype", prefix);
    if (!has(model, key)) {
        snprintf(key, sizeof key, "%sfactor", prefix);
        return has(model, key) ? fail(model, QE_E_MISSING, key, "a factor without a scaling type", err) : QE_OK;
    }
    QE_TRY(qe_store_get_string(model->store, key, &type, &bytes, err));
    if (!strcmp(type, "default") || !strcmp(type, "none")) return QE_OK;
    bool llama3 = !strcmp(type, "llama3");
    if (!llama3 && strcmp(type, "linear"))
        return fail(model, QE_E_UNSUPPORTED, key, "this rope scaling is not run", err);
    QE_TRY(get_positive(model, prefix, "factor", 1e-6, &value, err));
    rope->factor = (float)value;
    rope->scaling = llama3 ? QE_ROPE_SCALE_LLAMA3 : QE_ROPE_SCALE_LINEAR;
    if (!llama3) return QE_OK;
    QE_TRY(get_positive(model, prefix, "low_freq_factor", 1e-6, &value, err));
    rope->low_freq = (float)value;
    QE_TRY(get_positive(model, prefix, "high_freq_factor", 1e-6, &value, err));
    rope->high_freq = (float)value;
    if (rope->high_freq <= rope->low_freq)
        return fail(model, QE_E_MISMATCH, "high_freq_factor", "is not above low_freq_factor", err);
    QE_TRY(get_positive(model, prefix, "original_max_position_embeddings", 1, &value, err));
    rope->original_context = (int64_t)value;
    return QE_OK;
}

static qe_status read_base(const qe_model *model, const char *prefix, const char *name, double fallback, float *out,
                           qe_error *err) {
    char key[KEY_BYTES];
    double value = fallback;
    snprintf(key, sizeof key, "%s%s", prefix, name);
    if (has(model, key)) QE_TRY(get_positive(model, prefix, name, 1, &value, err));
    *out = (float)value;
    return QE_OK;
}

static qe_status read_rope(qe_model *model, qe_error *err) {
    qe_hparams *hp = &model->hp;
    char prefix[KEY_BYTES];
    float local_base = model->family->local_rope_base > 0 ? model->family->local_rope_base : 10000;
    hp->rope_kind = QE_ROPE_HALF;
    if (is_gguf(model)) {
        snprintf(prefix, sizeof prefix, "%.63s.rope.", model->architecture);
        QE_TRY(read_base(model, prefix, "freq_base", 10000, &hp->rope_global.base, err));
        QE_TRY(read_base(model, prefix, "freq_base_swa", local_base, &hp->rope_local.base, err));
        snprintf(prefix, sizeof prefix, "%.63s.rope.scaling.", model->architecture);
        QE_TRY(read_scaling(model, prefix, &hp->rope_global, err));
    } else if (has(model, "rope_parameters.full_attention.rope_theta")) {
        QE_TRY(read_base(model, "rope_parameters.full_attention.", "rope_theta", 10000, &hp->rope_global.base, err));
        QE_TRY(read_scaling(model, "rope_parameters.full_attention.", &hp->rope_global, err));
        QE_TRY(read_base(model, "rope_parameters.sliding_attention.", "rope_theta", local_base, &hp->rope_local.base,
                         err));
        return read_scaling(model, "rope_parameters.sliding_attention.", &hp->rope_local, err);
    } else {
        bool nested = has(model, "rope_parameters.rope_theta");
        double fallback = model->family->local_period ? 1000000 : 10000;
        QE_TRY(read_base(model, nested ? "rope_parameters." : "", "rope_theta", fallback, &hp->rope_global.base, err));
        QE_TRY(read_scaling(model, nested ? "rope_parameters." : "rope_scaling.", &hp->rope_global, err));
        QE_TRY(read_base(model, "", "rope_local_base_freq", local_base, &hp->rope_local.base, err));
    }
    hp->rope_local.factor = 1;
    return QE_OK;
}

/* ---- local and global layers ---------------------------------------------------------------------------------- */
static qe_status read_layer_types(qe_model *model, qe_error *err) {
    qe_meta_array array;
    QE_TRY(qe_store_get_array(model->store, "layer_types", &array, err));
    if (array.kind != QE_META_STRING) return fail(model, QE_E_TYPE, "layer_types", "items are not strings", err);
    if (array.count != model->hp.layers)
        return fail(model, QE_E_MISMATCH, "layer_types", "the list does not have one item for each layer", err);
    for (int64_t i = 0; i < array.count; i++) {
        size_t bytes;
        const char *text = qe_meta_array_string(&array, i, &bytes);
        bool local = bytes == 17 && !memcmp(text, "sliding_attention", 17);
        if (!local && (bytes != 14 || memcmp(text, "full_attention", 14)))
            return fail(model, QE_E_UNSUPPORTED, "layer_types", "an item is neither full nor sliding attention", err);
        model->local[i] = local;
    }
    return QE_OK;
}

static qe_status read_pattern(qe_model *model, qe_error *err) {
    qe_hparams *hp = &model->hp;
    char text[KEY_BYTES];
    model->local = calloc((size_t)hp->layers, 1);
    if (!model->local) return qe_error_set(err, QE_E_NOMEM, "no memory for %lld layers", (long long)hp->layers);
    hp->local = model->local;
    int64_t period = model->family->local_period;
    if (!period || !hp->window) {
        hp->window = 0;
        return QE_OK;
    }
    if (!is_gguf(model) && has(model, "layer_types")) return read_layer_types(model, err);
    const char *key = full_key(model, "attention.sliding_window_pattern", "sliding_window_pattern", text);
    if (has(model, key)) QE_TRY(qe_store_get_int(model->store, key, &period, err));
    if (period < 1) return fail(model, QE_E_RANGE, key, "is not positive", err);
    for (int64_t i = 0; i < hp->layers; i++) model->local[i] = (i + 1) % period != 0;
    return QE_OK;
}

/* ---- the rest ------------------------------------------------------------------------------------------------- */
static qe_status check_activation(const qe_model *model, qe_error *err) {
    const qe_family *family = model->family;
    const char *key = family->hf_activation_key, *name;
    if (is_gguf(model)) return QE_OK;
    if (!has(model, key)) key = "hidden_act";
    if (!has(model, key)) return QE_OK;
    QE_TRY(qe_store_get_string(model->store, key, &name, NULL, err));
    for (int i = 0; i < 2; i++)
        if (!strcmp(name, family->hf_activation[i])) return QE_OK;
    return fail(model, QE_E_UNSUPPORTED, key, "this family runs another activation only", err);
}

/* sqrt(hidden), rounded as the reference implementation of the format rounds it: HF to the type of the embedding. */
static float embed_scale(const qe_model *model) {
    float scale = sqrtf((float)model->hp.hidden);
    const qe_weight_row *row = qe_family_row(model->family, QE_ROLE_EMBED);
    if (is_gguf(model)) return scale;
    const qe_store_tensor *t = qe_store_tensor_at(model->store, qe_store_find(model->store, row->hf));
    switch (t ? qe_store_quant(t)->code : QE_CODE_NONE) {
    case QE_CODE_BF16:
        return qe_bf16_to_f32(qe_f32_to_bf16(scale));
    case QE_CODE_F16:
        return qe_f16_to_f32(qe_f32_to_f16(scale));
    default:
        return scale;
    }
}

static qe_status derive(qe_model *model, qe_error *err) {
    qe_hparams *hp = &model->hp;
    uint64_t cache = 1;
    if (!hp->kv_heads) hp->kv_heads = hp->heads;
    if (hp->heads % hp->kv_heads) return fail(model, QE_E_MISMATCH, "heads", "no multiple of the key/value heads", err);
    if (!hp->head_dim && hp->hidden % hp->heads)
        return fail(model, QE_E_MISMATCH, "heads", "do not divide the hidden size, and head_dim is missing", err);
    if (!hp->head_dim) hp->head_dim = hp->hidden / hp->heads;
    if (hp->head_dim % 2 || hp->head_dim < 2) return fail(model, QE_E_RANGE, "head_dim", "must be even", err);
    if (!hp->rope_dims) hp->rope_dims = hp->head_dim;
    if (hp->rope_dims % 2 || hp->rope_dims > hp->head_dim)
        return fail(model, QE_E_RANGE, "rope.dimension_count", "must be even and at most head_dim", err);
    if (hp->rope_dims != hp->head_dim)
        return fail(model, QE_E_UNSUPPORTED, "rope.dimension_count", "partial rotation is not run", err);
    const int64_t factors[] = {hp->layers, hp->context, hp->kv_heads, hp->head_dim, 4};
    for (int i = 0; i < 5; i++)
        if (!qe_check_mul(cache, (uint64_t)factors[i], &cache) || cache > INT64_MAX)
            return fail(model, QE_E_OVERFLOW, "context", "the size of the key/value cache overflows", err);
    return QE_OK;
}

qe_status qe_family_read_hparams(qe_model *model, qe_error *err) {
    const qe_family *family = model->family;
    qe_hparams *hp = &model->hp;
    double scalar = 0;
    for (size_t i = 0; i < sizeof common_keys / sizeof common_keys[0]; i++)
        QE_TRY(read_key(model, &common_keys[i], err));
    QE_TRY(read_limited(model, err));
    for (size_t i = 0; i < family->key_count; i++) QE_TRY(read_key(model, &family->keys[i], err));
    QE_TRY(derive(model, err));
    QE_TRY(read_rope(model, err));
    QE_TRY(read_pattern(model, err));
    QE_TRY(check_activation(model, err));
    if (!is_gguf(model) && has(model, "query_pre_attn_scalar"))
        QE_TRY(get_positive(model, "", "query_pre_attn_scalar", 1e-6, &scalar, err));
    hp->attn_scale = family->attn_scale ? family->attn_scale(hp, qe_store_get_kind(model->store), scalar)
                                        : 1.0f / sqrtf((float)hp->head_dim);
    hp->embed_scale = family->embed_scaled ? embed_scale(model) : 1;
    hp->activation = family->activation;
    hp->qk_norm = family->qk_norm;
    hp->post_norms = family->post_norms;
    hp->tied = family->tied_by_default;
    if (is_gguf(model))
        hp->tied = qe_store_find(model->store, "output.weight") < 0;
    else if (has(model, "tie_word_embeddings"))
        QE_TRY(qe_store_get_bool(model->store, "tie_word_embeddings", &hp->tied, err));
    return QE_OK;
}
