/* scheme_list.c -- the schemes that have a name. The text of a descriptor says the rest; a new row is all it takes. */
#include <string.h>

#include <qengine/quantize.h>

#define INT8_TOKEN "int8:channel:f32"
#define SIGN_TOKEN "sign:channel:f32"

static const qe_scheme schemes[] = {
    /* name, weight, what, input, method, full range */
    {"f16", "f16", "half floats, unquantized", NULL, QE_METHOD_RTN, 0},
    {"bf16", "bf16", "bfloat16, unquantized", NULL, QE_METHOD_RTN, 0},
    {"w8a16", INT8_TOKEN, "int8 per channel, weights only", NULL, QE_METHOD_RTN, 0},
    {"w8a8", INT8_TOKEN, "int8 per channel, int8 inputs per token", INT8_TOKEN, QE_METHOD_RTN, 0},
    {"w8a8-asym", INT8_TOKEN, "int8 per channel, asymmetric int8 inputs per token", "int8:channel:f32:z=u8",
     QE_METHOD_RTN, 0},
    {"w8a8-block", "int8:128x128:f32", "int8 per 128 x 128 block, int8 inputs per token", INT8_TOKEN, QE_METHOD_RTN, 0},
    {"w8a16-tensor", "int8:tensor:f32", "int8 with one scale", NULL, QE_METHOD_RTN, 0},
    {"w8a16-g128", "int8:g128:f16", "int8 in groups of 128", NULL, QE_METHOD_RTN, 0},
    {"w4a16-g32", "int4:g32:f16", "int4 in groups of 32", NULL, QE_METHOD_RTN, 0},
    {"w4a16-g64", "int4:g64:f16", "int4 in groups of 64", NULL, QE_METHOD_RTN, 0},
    {"w4a16-g128", "int4:g128:f16", "int4 in groups of 128", NULL, QE_METHOD_RTN, 0},
    {"w4a16-g256", "int4:g256:f16", "int4 in groups of 256", NULL, QE_METHOD_RTN, 0},
    {"w4a16-channel", "int4:channel:f16", "int4 per channel", NULL, QE_METHOD_RTN, 0},
    {"w4a16-g128-asym", "int4:g128:f16:z=u8", "asymmetric int4 in groups of 128 (AWQ, GPTQ)", NULL, QE_METHOD_RTN, 0},
    {"w4a8-g128", "int4:g128:f16", "int4 with half scales, int8 inputs per token", INT8_TOKEN, QE_METHOD_RTN, 0},
    {"w4a8-two-level", "int4:g128:u8:s=f16/channel", "int4, integer scales per 128 under one per channel (VSQuant)",
     INT8_TOKEN, QE_METHOD_RTN, 0},
    {"vsquant-g16", "int4:g16:u4:s=f16/channel", "int4, 4-bit scales per 16 under one per channel (VSQuant)",
     INT8_TOKEN, QE_METHOD_RTN, 0},
    {"w6a16-g128", "int6:g128:f16", "6 bits in groups of 128", NULL, QE_METHOD_RTN, 0},
    {"w5a16-g128", "int5:g128:f16", "5 bits in groups of 128", NULL, QE_METHOD_RTN, 0},
    {"w7a16-g128", "int7:g128:f16", "7 bits in groups of 128", NULL, QE_METHOD_RTN, 0},
    {"w3a16-g128", "int3:g128:f16", "3 bits in groups of 128", NULL, QE_METHOD_RTN, 0},
    {"w3a16-g64-asym", "int3:g64:f16:z=u8", "asymmetric 3 bits in groups of 64", NULL, QE_METHOD_RTN, 0},
    {"w2a16-g64", "int2:g64:f16:z=u8", "asymmetric 2 bits in groups of 64", NULL, QE_METHOD_RTN, 0},
    {"twn", "int2:channel:f32:z=1", "ternary weight network per channel", NULL, QE_METHOD_TWN, 0},
    {"ttq", "lut2:t=1", "ternary with a scale for each sign", NULL, QE_METHOD_TTQ, 0},
    {"absmean", "int2:channel:f32:z=1", "ternary by absmean rounding (BitNet b1.58)", NULL, QE_METHOD_ABSMEAN, 0},
    {"binary", "sign:channel:f32", "sign times mean |x| (BWN, XNOR-Net)", NULL, QE_METHOD_BINARY, 0},
    {"w1a8", SIGN_TOKEN, "signs, int8 inputs per token", INT8_TOKEN, QE_METHOD_RTN, 0},
    {"w1a1", SIGN_TOKEN, "signs, inputs of signs times mean |x| per token (XNOR-Net)", SIGN_TOKEN, QE_METHOD_RTN, 0},
    {"bitnet", "int2:channel:f32:z=1", "ternary by absmean rounding, int8 inputs per token (BitNet b1.58)", INT8_TOKEN,
     QE_METHOD_ABSMEAN, 0},
    {"binary-stochastic", "sign:channel:f32", "stochastic signs", NULL, QE_METHOD_STOCHASTIC, 0},
    {"nf4", "nf4:g64:f32", "normal float 4 in groups of 64 (QLoRA)", NULL, QE_METHOD_RTN, 0},
    {"iq4nl", "iq4nl:g32:f16", "GGUF's non-linear 4 bits in groups of 32", NULL, QE_METHOD_RTN, 0},
    {"kmeans4", "lut4:t=1", "a table of 16 per row by k-means", NULL, QE_METHOD_KMEANS, 0},
    {"kmeans3", "lut3:t=1", "a table of 8 per row by k-means", NULL, QE_METHOD_KMEANS, 0},
    {"kmeans2", "lut2:t=1", "a table of 4 per row by k-means", NULL, QE_METHOD_KMEANS, 0},
    {"fp8", "e4m3:channel:f32", "8-bit floats per channel", NULL, QE_METHOD_RTN, 0},
    {"mxint8", "int8:g32:e8m0^-6", "int8 with a shared exponent per 32 (OCP MX)", NULL, QE_METHOD_RTN, 0},
    {"mxfp4", "e2m1:g32:e8m0", "4-bit floats with a shared exponent per 32 (OCP MX)", NULL, QE_METHOD_RTN, 0},
    {"nvfp4", "e2m1:g16:e4m3:s=f32/tensor", "4-bit floats, 8-bit float scales per 16", NULL, QE_METHOD_RTN, 0},
    {"mx9", "int8:g2:pow2n^-6:s=e8m0/g16", "8 bits, an exponent per 16 and a bit per pair", NULL, QE_METHOD_RTN, 0},
    {"mx6", "int5:g2:pow2n^-3:s=e8m0/g16", "5 bits, an exponent per 16 and a bit per pair", NULL, QE_METHOD_RTN, 0},
    {"mx4", "int3:g2:pow2n^-1:s=e8m0/g16", "3 bits, an exponent per 16 and a bit per pair", NULL, QE_METHOD_RTN, 0},
    {"q4_0", "int4:g32:f16", "GGUF Q4_0", NULL, QE_METHOD_RTN, 1},
    {"q5_0", "int5:g32:f16", "GGUF Q5_0", NULL, QE_METHOD_RTN, 1},
    {"q8_0", "int8:g32:f16", "GGUF Q8_0", NULL, QE_METHOD_RTN, 0},
    {"q4_k", "int4:g32:u6:s=f16/g256:b=u6", "GGUF Q4_K", NULL, QE_METHOD_RTN, 0},
    {"q6_k", "int6:g16:s8:s=f16/g256", "GGUF Q6_K", NULL, QE_METHOD_RTN, 1},
};
enum { SCHEME_COUNT = sizeof schemes / sizeof schemes[0] };

const qe_scheme *qe_scheme_at(int32_t index) { return index >= 0 && index < SCHEME_COUNT ? &schemes[index] : NULL; }

const qe_scheme *qe_scheme_find(const char *name) {
    for (int i = 0; name && i < SCHEME_COUNT; i++) {
        if (!strcmp(schemes[i].name, name)) return &schemes[i];
    }
    return NULL;
}
