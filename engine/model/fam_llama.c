/* Llama (1 to 3.2) and models published under its name: RMS norm before attention and ffn, gated SiLU, one rotation
 * base, optional biases. GGUF files store rows of q and k permuted for interleaved rotation; they are read back into
 * the published order, so that one rotation serves both formats. */
#include "model/family.h"

#define L "model.layers.%lld."
static const qe_weight_row weights[] = {
    {QE_ROLE_EMBED, "token_embd.weight", "model.embed_tokens.weight", QE_SIZE_VOCAB, QE_SIZE_HIDDEN, 0},
    {QE_ROLE_OUTPUT, "output.weight", "lm_head.weight", QE_SIZE_VOCAB, QE_SIZE_HIDDEN, QE_ROW_OPTIONAL},
    {QE_ROLE_OUTPUT_NORM, "output_norm.weight", "model.norm.weight", QE_SIZE_ONE, QE_SIZE_HIDDEN, QE_ROW_NORM},
    {QE_ROLE_ROPE_FREQS, "rope_freqs.weight", NULL, QE_SIZE_ONE, QE_SIZE_ROPE, QE_ROW_OPTIONAL},
    {QE_ROLE_ATTN_NORM, "blk.%lld.attn_norm.weight", L "input_layernorm.weight", QE_SIZE_ONE, QE_SIZE_HIDDEN,
     QE_ROW_NORM},
    {QE_ROLE_Q, "blk.%lld.attn_q.weight", L "self_attn.q_proj.weight", QE_SIZE_Q, QE_SIZE_HIDDEN, QE_ROW_Q_ORDER},
    {QE_ROLE_K, "blk.%lld.attn_k.weight", L "self_attn.k_proj.weight", QE_SIZE_KV, QE_SIZE_HIDDEN, QE_ROW_K_ORDER},
    {QE_ROLE_V, "blk.%lld.attn_v.weight", L "self_attn.v_proj.weight", QE_SIZE_KV, QE_SIZE_HIDDEN, 0},
    {QE_ROLE_O, "blk.%lld.attn_output.weight", L "self_attn.o_proj.weight", QE_SIZE_HIDDEN, QE_SIZE_Q, 0},
    {QE_ROLE_FFN_NORM, "blk.%lld.ffn_norm.weight", L "post_attention_layernorm.weight", QE_SIZE_ONE, QE_SIZE_HIDDEN,
     QE_ROW_NORM},
    {QE_ROLE_GATE, "blk.%lld.ffn_gate.weight", L "mlp.gate_proj.weight", QE_SIZE_FFN, QE_SIZE_HIDDEN, 0},
    {QE_ROLE_UP, "blk.%lld.ffn_up.weight", L "mlp.up_proj.weight", QE_SIZE_FFN, QE_SIZE_HIDDEN, 0},
    {QE_ROLE_DOWN, "blk.%lld.ffn_down.weight", L "mlp.down_proj.weight", QE_SIZE_HIDDEN, QE_SIZE_FFN, 0},
    {QE_ROLE_Q_BIAS, "blk.%lld.attn_q.bias", L "self_attn.q_proj.bias", QE_SIZE_ONE, QE_SIZE_Q,
     QE_ROW_OPTIONAL | QE_ROW_Q_ORDER},
    {QE_ROLE_K_BIAS, "blk.%lld.attn_k.bias", L "self_attn.k_proj.bias", QE_SIZE_ONE, QE_SIZE_KV,
     QE_ROW_OPTIONAL | QE_ROW_K_ORDER},
    {QE_ROLE_V_BIAS, "blk.%lld.attn_v.bias", L "self_attn.v_proj.bias", QE_SIZE_ONE, QE_SIZE_KV, QE_ROW_OPTIONAL},
    {QE_ROLE_O_BIAS, "blk.%lld.attn_output.bias", L "self_attn.o_proj.bias", QE_SIZE_ONE, QE_SIZE_HIDDEN,
     QE_ROW_OPTIONAL},
    {QE_ROLE_GATE_BIAS, "blk.%lld.ffn_gate.bias", L "mlp.gate_proj.bias", QE_SIZE_ONE, QE_SIZE_FFN, QE_ROW_OPTIONAL},
    {QE_ROLE_UP_BIAS, "blk.%lld.ffn_up.bias", L "mlp.up_proj.bias", QE_SIZE_ONE, QE_SIZE_FFN, QE_ROW_OPTIONAL},
    {QE_ROLE_DOWN_BIAS, "blk.%lld.ffn_down.bias", L "mlp.down_proj.bias", QE_SIZE_ONE, QE_SIZE_HIDDEN, QE_ROW_OPTIONAL},
};
#undef L

const qe_family qe_family_llama = {
    .name = "llama",
    .gguf_architecture = "llama",
    .hf_architectures = {"LlamaForCausalLM"},
    .weights = weights,
    .weight_count = sizeof weights / sizeof weights[0],
    .activation = QE_ACTIVATION_SILU,
    .hf_activation = {"silu", "swish"},
    .hf_activation_key = "hidden_act",
};
