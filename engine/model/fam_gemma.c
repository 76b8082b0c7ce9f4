/* Gemma 3, text. Norms before and after attention and ffn, RMS norm over heads of q and k, five layers with a sliding
 * window to each global one, two rotation bases, embedding rows times sqrt(hidden), gated tanh-GELU. */
#include <math.h>

#include "model/family.h"

#define L "model.layers.%lld."
static const qe_weight_row weights[] = {
    {QE_ROLE_EMBED, "token_embd.weight", "model.embed_tokens.weight", QE_SIZE_VOCAB, QE_SIZE_HIDDEN, 0},
    {QE_ROLE_OUTPUT, "output.weight", "lm_head.weight", QE_SIZE_VOCAB, QE_SIZE_HIDDEN, QE_ROW_OPTIONAL},
    {QE_ROLE_OUTPUT_NORM, "output_norm.weight", "model.norm.weight", QE_SIZE_ONE, QE_SIZE_HIDDEN, QE_ROW_NORM},
    {QE_ROLE_ATTN_NORM, "blk.%lld.attn_norm.weight", L "input_layernorm.weight", QE_SIZE_ONE, QE_SIZE_HIDDEN,
     QE_ROW_NORM},
    {QE_ROLE_Q, "blk.%lld.attn_q.weight", L "self_attn.q_proj.weight", QE_SIZE_Q, QE_SIZE_HIDDEN, 0},
    {QE_ROLE_K, "blk.%lld.attn_k.weight", L "self_attn.k_proj.weight", QE_SIZE_KV, QE_SIZE_HIDDEN, 0},
    {QE_ROLE_V, "blk.%lld.attn_v.weight", L "self_attn.v_proj.weight", QE_SIZE_KV, QE_SIZE_HIDDEN, 0},
    {QE_ROLE_O, "blk.%lld.attn_output.weight", L "self_attn.o_proj.weight", QE_SIZE_HIDDEN, QE_SIZE_Q, 0},
    {QE_ROLE_Q_NORM, "blk.%lld.attn_q_norm.weight", L "self_attn.q_norm.weight", QE_SIZE_ONE, QE_SIZE_HEAD,
     QE_ROW_NORM},
    {QE_ROLE_K_NORM, "blk.%lld.attn_k_norm.weight", L "self_attn.k_norm.weight", QE_SIZE_ONE, QE_SIZE_HEAD,
     QE_ROW_NORM},
    {QE_ROLE_POST_ATTN_NORM, "blk.%lld.post_attention_norm.weight", L "post_attention_layernorm.weight", QE_SIZE_ONE,
     QE_SIZE_HIDDEN, QE_ROW_NORM},
    {QE_ROLE_FFN_NORM, "blk.%lld.ffn_norm.weight", L "pre_feedforward_layernorm.weight", QE_SIZE_ONE, QE_SIZE_HIDDEN,
     QE_ROW_NORM},
    {QE_ROLE_GATE, "blk.%lld.ffn_gate.weight", L "mlp.gate_proj.weight", QE_SIZE_FFN, QE_SIZE_HIDDEN, 0},
    {QE_ROLE_UP, "blk.%lld.ffn_up.weight", L "mlp.up_proj.weight", QE_SIZE_FFN, QE_SIZE_HIDDEN, 0},
    {QE_ROLE_DOWN, "blk.%lld.ffn_down.weight", L "mlp.down_proj.weight", QE_SIZE_HIDDEN, QE_SIZE_FFN, 0},
    {QE_ROLE_POST_FFN_NORM, "blk.%lld.post_ffw_norm.weight", L "post_feedforward_layernorm.weight", QE_SIZE_ONE,
     QE_SIZE_HIDDEN, QE_ROW_NORM},
};
#undef L

static const qe_hparam_key keys[] = {
    {offsetof(qe_hparams, window), QE_KEY_INT, "attention.sliding_window", "sliding_window", NULL, false, 0, 1,
     1 << 30},
    {offsetof(qe_hparams, attn_softcap), QE_KEY_FLOAT, "attn_logit_softcapping", "attn_logit_softcapping", NULL, false,
     0, 1e-3, 1e6},
    {offsetof(qe_hparams, final_softcap), QE_KEY_FLOAT, "final_logit_softcapping", "final_logit_softcapping", NULL,
     false, 0, 1e-3, 1e6},
};

/* HF states query_pre_attn_scalar; GGUF leaves it out: it is the head size, but for the 27B model (62 layers), where
 * it is hidden / heads. */
static float attn_scale(const qe_hparams *hp, qe_store_kind kind, double query_scalar) {
    if (kind == QE_STORE_SAFETENSORS) return (float)(1 / sqrt(query_scalar > 0 ? query_scalar : 256));
    double scalar = hp->layers == 62 ? (double)hp->hidden / (double)hp->heads : (double)hp->head_dim;
    return 1.0f / sqrtf((float)scalar);
}

const qe_family qe_family_gemma3 = {
    .name = "gemma3",
    .gguf_architecture = "gemma3",
    .hf_architectures = {"Gemma3ForCausalLM", "Gemma3TextModel"},
    .weights = weights,
    .weight_count = sizeof weights / sizeof weights[0],
    .keys = keys,
    .key_count = sizeof keys / sizeof keys[0],
    .hf_norm_offset = 1,
    .qk_norm = true,
    .post_norms = true,
    .embed_scaled = true,
    .tied_by_default = true,
    .activation = QE_ACTIVATION_GELU_TANH,
    .hf_activation = {"gelu_pytorch_tanh", "gelu_new"},
    .hf_activation_key = "hidden_activation",
    .local_period = 6,
    .local_rope_base = 10000,
    .attn_scale = attn_scale,
};
