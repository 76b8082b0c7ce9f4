/* Which instruction sets this machine and its operating system offer. */
#include "decoded.h"

uint32_t cpu_isa(void) {
    uint32_t isa = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        isa |= QK_ISA_AVX2;
    if (isa && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        isa |= QK_ISA_AVX512;
        if (__builtin_cpu_supports("avx512vnni")) isa |= QK_ISA_VNNI512;
    }
#endif
    return isa;
}

const panel_isa *panel_isa_of(uint32_t isa) {
#if defined(__x86_64__)
    if (isa & QK_ISA_VNNI512) return &panel_isa_avx512;
    if (isa & QK_ISA_AVX2) return &panel_isa_avx2;
#endif
    (void)isa;
    return &panel_isa_portable;
}

const decoded_isa *decoded_isa_of(uint32_t isa) {
#if defined(__x86_64__)
    if (isa & QK_ISA_VNNI512) return &decoded_isa_avx512;
    if (isa & QK_ISA_AVX2) return &decoded_isa_avx2;
#endif
    (void)isa;
    return &decoded_isa_portable;
}
