/* quantize_hf.c -- a folder made of a GGUF file: its config.json from the sizes that were read, its tokenizer as the keys it
 * had. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/tokenizer.h>

#include "format/gguf_text.h"
#include "model/family.h"
#include "run/quantize_internal.h"

static void put(json_t *to, const char *key, int64_t value) { json_object_set_new(to, key, json_integer(value)); }
/* A float as the shortest text that gives it back would have it: 1e-6, not 9.99999997e-7. */
static void put_float(json_t *to, const char *key, float value) {
    char text[32];
    snprintf(text, sizeof text, "%.7g", (double)value);
    json_object_set_new(to, key, json_real(strtof(text, NULL) == value ? strtod(text, NULL) : (double)value));
}

/* Layers with a window, and what only such families have. */
static void put_windows(json_t *root, const qe_hparams *hp) {
    if (!hp->window) return;
    json_t *types = json_array();
    for (int64_t i = 0; i < hp->layers; i++) json_array_append_new(types, json_string(hp->local[i] ? "sliding_attention" : "full_attention"));
    json_object_set_new(root, "layer_types", types);
    put(root, "sliding_window", hp->window);
    put_float(root, "rope_local_base_freq", hp->rope_local.base);
}

static void put_tokens(json_t *root, const qe_tokenizer *t) {
    static const struct { const char *key; int32_t which; } ids[] = {
        {"bos_token_id", QE_SPECIAL_BOS}, {"eos_token_id", QE_SPECIAL_EOS}, {"pad_token_id", QE_SPECIAL_PAD}};
    for (size_t i = 0; t && i < sizeof ids / sizeof ids[0]; i++) {
        int32_t id = qe_tokenizer_special(t, ids[i].which);
        if (id >= 0) put(root, ids[i].key, id);
    }
}

static void put_rope(json_t *root, const qe_rope *rope) {
    put_float(root, "rope_theta", rope->base);
    if (rope->scaling == QE_ROPE_SCALE_NONE) return;
    json_t *scaling = json_object();
    bool llama3 = rope->scaling == QE_ROPE_SCALE_LLAMA3;
    json_object_set_new(scaling, "rope_type", json_string(llama3 ? "llama3" : "linear"));
    put_float(scaling, "factor", rope->factor);
    if (llama3) {
        put_float(scaling, "low_freq_factor", rope->low_freq);
        put_float(scaling, "high_freq_factor", rope->high_freq);
        put(scaling, "original_max_position_embeddings", rope->original_context);
    }
    json_object_set_new(root, "rope_scaling", scaling);
}

json_t *qe_job_hf_config(const qe_job *job) {
    const qe_model *model = job->model;
    const qe_hparams *hp = &model->hp;
    const qe_family *family = model->family;
    json_t *root = json_pack("{s:[s], s:s, s:s}", "architectures", family->hf_architectures[0], "model_type",
                             family == &qe_family_gemma3 ? "gemma3_text" : family->name, "torch_dtype", "float16");
    if (!root) return NULL;
    put(root, "vocab_size", hp->vocab);
    put(root, "hidden_size", hp->hidden);
    put(root, "intermediate_size", hp->ffn);
    put(root, "num_hidden_layers", hp->layers);
    put(root, "num_attention_heads", hp->heads);
    put(root, "num_key_value_heads", hp->kv_heads);
    put(root, "head_dim", hp->head_dim);
    put(root, "max_position_embeddings", hp->context);
    put_float(root, "rms_norm_eps", hp->eps);
    json_object_set_new(root, family->hf_activation_key, json_string(family->hf_activation[0]));
    json_object_set_new(root, "tie_word_embeddings", json_boolean(hp->tied));
    if (family->attn_scale) put_float(root, "query_pre_attn_scalar", (float)round(1 / ((double)hp->attn_scale * (double)hp->attn_scale)));
    if (hp->attn_softcap > 0) put_float(root, "attn_logit_softcapping", hp->attn_softcap);
    if (hp->final_softcap > 0) put_float(root, "final_logit_softcapping", hp->final_softcap);
    put_rope(root, &hp->rope_global);
    put_windows(root, hp);
    put_tokens(root, model->tokenizer);
    return root;
}

qe_status qe_job_gguf_tokenizer(qe_job *job, qe_error *err) {
    qe_gguf_text keys = {.data = NULL};
    size_t bytes;
    if (!job->model->tokenizer) return QE_OK;
    qe_gguf_copy_keys(&keys, job->model->store, "tokenizer.");
    char *file = qe_gguf_keys_alone(&keys, &bytes);
    qe_status status = file ? qe_out_side(job->out, "tokenizer.gguf", file, bytes, err)
                            : qe_error_set(err, QE_E_NOMEM, "no memory for the tokenizer");
    free(keys.data);
    free(file);
    return status;
}
