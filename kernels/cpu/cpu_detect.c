/* What this machine is called, and which instruction sets it and its operating system offer. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include "decoded.h"
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

void cpu_name(char *out, size_t bytes) {
    char text[49] = "";
#if defined(__x86_64__)
    unsigned part[12] = {0};
    bool known = __get_cpuid_max(0x80000000u, NULL) >= 0x80000004u;
    for (unsigned i = 0; i < 3 && known; i++)
        known = __get_cpuid(0x80000002u + i, &part[4 * i], &part[4 * i + 1], &part[4 * i + 2], &part[4 * i + 3]);
    if (known) memcpy(text, part, sizeof part);
#endif
    /* Padded with spaces, at the front by some makers. */
    const char *name = text + strspn(text, " ");
    size_t length = strlen(name);
    while (length && name[length - 1] == ' ') length--;
    if (length) snprintf(out, bytes, "%.*s", (int)length, name);
    else snprintf(out, bytes, "CPU");
}

#if defined(__x86_64__)
/* AMX with int8, saved by the operating system, and permitted to this process: Linux gives its 8 KiB of state to those that
 * ask. Asking again changes nothing, so that threads may do it at once. */
__attribute__((target("xsave"))) static bool has_amx(void) {
    enum { LEAF = 7, INT8_AND_TILE = 3 << 24, OSXSAVE = 1 << 27, TILE_STATE = 3 << 17, REQUEST = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) return false;
    if (!__get_cpuid_count(LEAF, 0, &a, &b, &c, &d) || (d & INT8_AND_TILE) != INT8_AND_TILE) return false;
    return (_xgetbv(0) & TILE_STATE) == TILE_STATE && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#endif

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
        if (isa & QK_ISA_VNNI512 && has_amx()) isa |= QK_ISA_AMX;
        if (__builtin_cpu_supports("avx512vpopcntdq")) isa |= QK_ISA_VPOPCNT;
        if (__builtin_cpu_is("intel")) isa |= QK_ISA_FEW_PORTS;
    }
#endif
    return isa;
}

const panel_isa *panel_isa_of(uint32_t isa) {
#if defined(__x86_64__)
    if (isa & QK_ISA_AMX) return &panel_isa_amx;
    if (isa & QK_ISA_VNNI512) return isa & QK_ISA_FEW_PORTS ? &panel_isa_avx512_unpacked : &panel_isa_avx512;
    if (isa & QK_ISA_AVX2) return &panel_isa_avx2;
#endif
    (void)isa;
    return &panel_isa_portable;
}

const panel_isa *panel_isa_for(uint32_t isa, const panel_format *f, int64_t m) {
    bool floats = f->scale != PANEL_CHANNEL && f->scale != PANEL_INT;
    return panel_isa_of(floats && (m <= 24 || f->group < 32) ? isa & ~(uint32_t)QK_ISA_AMX : isa);
}

const decoded_isa *decoded_isa_of(uint32_t isa) {
#if defined(__x86_64__)
    if (isa & QK_ISA_VNNI512) return &decoded_isa_avx512;
    if (isa & QK_ISA_AVX2) return &decoded_isa_avx2;
#endif
    (void)isa;
    return &decoded_isa_portable;
}
