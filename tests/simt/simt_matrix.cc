// Matrix loads and stores, mma.sync.
#include "simt_ptx.h"
#include "simt_impl.h"

namespace simt {
float h16(uint32_t bits, bool bf) { // a 16-bit operand as float
    uint16_t u = uint16_t(bits);
    if (bf) {
        uint32_t w = uint32_t(u) << 16;
        float f;
        std::memcpy(&f, &w, 4);
        return f;
    }
    __half h;
    std::memcpy(static_cast<void *>(&h), &u, 2);
    return __half2float(h);
}
namespace {
struct LdArgs {
    uint32_t *r;
    uint32_t addr;
    int count;
    bool trans;
    Loc loc;
};
struct MmaArgs {
    void *d;
    const uint32_t *a;
    const uint32_t *b;
};
} // namespace
void ldmatrix(uint32_t *r, int count, bool trans, uint32_t addr, Loc loc) {
    LdArgs a{r, addr, count, trans, loc};
    warp_collective(
        0xffffffffu, &a,
        [](void *const *p, uint32_t) {
            auto *l0 = static_cast<LdArgs *>(p[0]);
            uint16_t m[8][8];
            Thread *first = &self()->block->threads[self()->warp->first_thread];
            for (int i = 0; i < l0->count; i++) {
                for (int row = 0; row < 8; row++) { // row addresses come from lanes 8i .. 8i+7
                    auto *x = static_cast<LdArgs *>(p[8 * i + row]);
                    std::memcpy(m[row], smem_ptr(x->addr, 16, 16, x->loc, "ldmatrix"), 16);
                    race_access(first + 8 * i + row, x->addr - kSmemBase, 16, false, x->loc, "ldmatrix");
                }
                for (int lane = 0; lane < 32; lane++) {
                    int g = lane / 4, t = lane % 4;
                    uint32_t lo = l0->trans ? m[2 * t][g] : m[g][2 * t],
                             hi = l0->trans ? m[2 * t + 1][g] : m[g][2 * t + 1];
                    static_cast<LdArgs *>(p[lane])->r[i] = lo | hi << 16;
                }
            }
        },
        "ldmatrix", loc);
}

void lds(void *r, uint32_t bytes, uint32_t addr, Loc loc) {
    void *p = smem_ptr(addr, bytes, bytes, loc, "ld.shared");
    race_access(self(), addr - kSmemBase, bytes, false, loc, "ld.shared");
    std::memcpy(r, p, bytes);
}
void ldmatrix_s4(uint32_t *r, int count, uint32_t addr, Loc loc) {
    LdArgs a{r, addr, count, false, loc};
    warp_collective(
        0xffffffffu, &a,
        [](void *const *p, uint32_t) {
            auto *l0 = static_cast<LdArgs *>(p[0]);
            Thread *first = &self()->block->threads[self()->warp->first_thread];
            for (int i = 0; i < l0->count; i++) {
                uint8_t m[8][8]; // 16 nibbles a row, the even element in the low half
                for (int row = 0; row < 8; row++) {
                    auto *x = static_cast<LdArgs *>(p[8 * i + row]);
                    std::memcpy(m[row], smem_ptr(x->addr, 8, 8, x->loc, "ldmatrix.s4"), 8);
                    race_access(first + 8 * i + row, x->addr - kSmemBase, 8, false, x->loc, "ldmatrix.s4");
                }
                for (int lane = 0; lane < 32; lane++) { // 8-bit fragment: row lane/4, columns 4*(lane%4) + 0..3
                    uint32_t v = 0;
                    for (int j = 0; j < 4; j++) {
                        int c = lane % 4 * 4 + j, q = m[lane / 4][c / 2] >> 4 * (c & 1) & 15;
                        v |= uint32_t(uint8_t((q ^ 8) - 8)) << 8 * j;
                    }
                    static_cast<LdArgs *>(p[lane])->r[i] = v;
                }
            }
        },
        "ldmatrix.s4", loc);
}
void stmatrix(const uint32_t *r, int count, bool trans, uint32_t addr, Loc loc) {
    LdArgs a{const_cast<uint32_t *>(r), addr, count, trans, loc};
    warp_collective(
        0xffffffffu, &a,
        [](void *const *p, uint32_t) {
            auto *l0 = static_cast<LdArgs *>(p[0]);
            Thread *first = &self()->block->threads[self()->warp->first_thread];
            for (int i = 0; i < l0->count; i++) {
                uint16_t m[8][8];
                for (int lane = 0; lane < 32; lane++) {
                    int g = lane / 4, t = lane % 4;
                    uint32_t v = static_cast<LdArgs *>(p[lane])->r[i];
                    uint16_t lo = uint16_t(v), hi = uint16_t(v >> 16);
                    if (l0->trans)
                        m[2 * t][g] = lo, m[2 * t + 1][g] = hi;
                    else
                        m[g][2 * t] = lo, m[g][2 * t + 1] = hi;
                }
                for (int row = 0; row < 8; row++) {
                    auto *x = static_cast<LdArgs *>(p[8 * i + row]);
                    void *d = smem_ptr(x->addr, 16, 16, x->loc, "stmatrix");
                    race_access(first + 8 * i + row, x->addr - kSmemBase, 16, true, x->loc, "stmatrix");
                    std::memcpy(d, m[row], 16);
                }
            }
        },
        "stmatrix", loc);
}

// A 16xK and B Kx8 in float (int8 products summed over k = 32 stay below 2^24: exact).
SIMT_CLONES static void mma_16x8(const float *a, const float *bt, float *d, int k) {
    for (int m = 0; m < 16; m += 4) { // four rows at a time hide the add latency
        V8 c0 = {}, c1 = {}, c2 = {}, c3 = {};
        for (int i = 0; i < k; i++) {
            V8 b = *reinterpret_cast<const V8 *>(bt + i * 8);
            c0 += a[m * k + i] * b;
            c1 += a[(m + 1) * k + i] * b;
            c2 += a[(m + 2) * k + i] * b;
            c3 += a[(m + 3) * k + i] * b;
        }
        V8 *o = reinterpret_cast<V8 *>(d + m * 8);
        o[0] = c0;
        o[1] = c1;
        o[2] = c2;
        o[3] = c3;
    }
}
static void mma_s8(void *const *p, uint32_t) {
    float a[16 * 32], b[32 * 8], d[16 * 8];
    for (int l = 0; l < 32; l++) {
        auto *x = static_cast<MmaArgs *>(p[l]);
        int g = l / 4, t = l % 4;
        for (int r = 0; r < 4; r++)
            for (int j = 0; j < 4; j++)
                a[(g + 8 * (r & 1)) * 32 + 16 * (r >> 1) + 4 * t + j] = float(int8_t(x->a[r] >> 8 * j));
        for (int r = 0; r < 2; r++)
            for (int j = 0; j < 4; j++) b[(16 * r + 4 * t + j) * 8 + g] = float(int8_t(x->b[r] >> 8 * j));
    }
    mma_16x8(a, b, d, 32);
    for (int l = 0; l < 32; l++) {
        auto *c = static_cast<int32_t *>(static_cast<MmaArgs *>(p[l])->d);
        int g = l / 4, t = l % 4;
        for (int r = 0; r < 4; r++)
            c[r] = int32_t(uint32_t(c[r]) + uint32_t(int32_t(d[(g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1)])));
    }
}
static void mma_b1(void *const *p, uint32_t) {
    uint32_t a[16][8], b[8][8]; // rows of A and columns of B, 256 bits each
    for (int l = 0; l < 32; l++) {
        auto *x = static_cast<MmaArgs *>(p[l]);
        int g = l / 4, t = l % 4;
        for (int r = 0; r < 4; r++) a[g + 8 * (r & 1)][4 * (r >> 1) + t] = x->a[r];
        for (int r = 0; r < 2; r++) b[g][4 * r + t] = x->b[r];
    }
    for (int l = 0; l < 32; l++) {
        auto *c = static_cast<int32_t *>(static_cast<MmaArgs *>(p[l])->d);
        for (int r = 0; r < 4; r++) {
            const uint32_t *row = a[l / 4 + 8 * (r >> 1)], *column = b[2 * (l % 4) + (r & 1)];
            uint32_t sum = uint32_t(c[r]);
            for (int i = 0; i < 8; i++) sum += uint32_t(__builtin_popcount(row[i] & column[i]));
            c[r] = int32_t(sum);
        }
    }
}
template <bool Bf> static void mma_f16(void *const *p, uint32_t) {
    float a[16 * 16], b[16 * 8], d[16 * 8];
    for (int l = 0; l < 32; l++) {
        auto *x = static_cast<MmaArgs *>(p[l]);
        int g = l / 4, t = l % 4;
        for (int r = 0; r < 4; r++)
            for (int j = 0; j < 2; j++)
                a[(g + 8 * (r & 1)) * 16 + 8 * (r >> 1) + 2 * t + j] = h16(x->a[r] >> 16 * j, Bf);
        for (int r = 0; r < 2; r++)
            for (int j = 0; j < 2; j++) b[(8 * r + 2 * t + j) * 8 + g] = h16(x->b[r] >> 16 * j, Bf);
    }
    mma_16x8(a, b, d, 16);
    for (int l = 0; l < 32; l++) {
        auto *c = static_cast<float *>(static_cast<MmaArgs *>(p[l])->d);
        int g = l / 4, t = l % 4;
        for (int r = 0; r < 4; r++) c[r] += d[(g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1)];
    }
}
void mma(Mma kind, void *d, const uint32_t *a, const uint32_t *b, Loc loc) {
    MmaArgs x{d, a, b};
    if (kind == Mma::S8_16832)
        warp_collective(0xffffffffu, &x, mma_s8, "mma.m16n8k32.s8", loc);
    else if (kind == Mma::B1_168256)
        warp_collective(0xffffffffu, &x, mma_b1, "mma.m16n8k256.b1", loc);
    else if (kind == Mma::F16_16816)
        warp_collective(0xffffffffu, &x, mma_f16<false>, "mma.m16n8k16.f16", loc);
    else
        warp_collective(0xffffffffu, &x, mma_f16<true>, "mma.m16n8k16.bf16", loc);
}

} // namespace simt
