// wgmma: descriptors, products, accumulators in flight.
#include "simt_ptx.h"
#include "simt_impl.h"

namespace simt {
namespace {
struct WgArgs {
    Wgmma kind;
    int n;
    void *d;
    const uint32_t *a;
    uint64_t da, db;
    bool scale;
    Loc loc;
};

// One row of a K-major, 128-byte-swizzled operand: 32 bytes at row r.
void desc_check(uint64_t d, Loc loc) {
    unsigned layout = unsigned(d >> 62), base_off = unsigned(d >> 49 & 7);
    uint32_t start = uint32_t(d & 0x3fff) << 4;
    if (layout != 1) fail(loc, "wgmma descriptor: layout %u (only the 128-byte swizzle, 1, is modelled)", layout);
    if (base_off || (start >> 7 & 7))
        fail(loc, "wgmma descriptor: operand at 0x%x does not start on a 1024-byte swizzle atom", start - kSmemBase);
}
void desc_row(uint64_t d, int r, char *out, Loc loc, std::vector<std::pair<uint32_t, uint32_t>> *reads) {
    uint32_t start = uint32_t(d & 0x3fff) << 4, sbo = uint32_t(d >> 32 & 0x3fff) << 4;
    uint32_t row = start + uint32_t(r / 8) * sbo + uint32_t(r % 8) * 128;
    for (int c = 0; c < 2; c++) {
        uint32_t a = swizzle(row + 16 * uint32_t(c), 128);
        std::memcpy(out + 16 * c, smem_ptr(a, 16, 16, loc, "wgmma operand"), 16);
        if (reads) reads->push_back({a - kSmemBase, 16});
    }
}
SIMT_CLONES void gemm_rows(const float *a, const float *bt, float *d, int m, int n, int k) {
    int n0 = 0;
    for (; n0 + 16 <= n; n0 += 16)
        for (int i = 0; i < m; i += 4) { // m is 64
            V16 c0 = {}, c1 = {}, c2 = {}, c3 = {};
            const float *r = a + i * k;
            for (int j = 0; j < k; j++) {
                V16 b = *reinterpret_cast<const V16 *>(bt + j * n + n0);
                c0 += r[j] * b;
                c1 += r[k + j] * b;
                c2 += r[2 * k + j] * b;
                c3 += r[3 * k + j] * b;
            }
            float *o = d + i * n + n0;
            *reinterpret_cast<V16 *>(o) = c0;
            *reinterpret_cast<V16 *>(o + n) = c1;
            *reinterpret_cast<V16 *>(o + 2 * n) = c2;
            *reinterpret_cast<V16 *>(o + 3 * n) = c3;
        }
    for (; n0 < n; n0++)
        for (int i = 0; i < m; i++) {
            float c = 0;
            for (int j = 0; j < k; j++) c += a[i * k + j] * bt[j * n + n0];
            d[i * n + n0] = c;
        }
}
struct WgWork {
    Wgmma kind;
    int n;
    bool scale, rs;
    uint64_t da, db;
    uint32_t areg[128][4];
    void *d[128];
    Loc loc;
};

void wg_run(const WgWork &w) {
    static thread_local std::vector<float> a, bt, d;
    const bool s8 = w.kind == Wgmma::S8 || w.kind == Wgmma::U8S8, a_u8 = w.kind == Wgmma::U8S8;
    const int k = s8 ? 32 : 16, n = w.n;
    a.resize(size_t(64 * k));
    bt.resize(size_t(k * n));
    d.resize(size_t(64 * n));
    auto value = [&](const char *row, int i) {
        if (s8) return float(int8_t(row[i]));
        uint16_t u;
        std::memcpy(&u, row + 2 * i, 2);
        return h16(u, w.kind == Wgmma::BF16);
    };
    char row[32];
    if (w.rs) {
        for (int t = 0; t < 128; t++)
            for (int r = 0; r < 4; r++) {
                int m = t / 32 * 16 + t % 32 / 4 + 8 * (r & 1), per = s8 ? 4 : 2, k0 = (r >> 1) * (k / 2) + t % 4 * per;
                std::memcpy(row, &w.areg[t][r], 4);
                for (int j = 0; j < per; j++) a[size_t(m * k + k0 + j)] = a_u8 ? float(uint8_t(row[j])) : value(row, j);
            }
    } else
        for (int m = 0; m < 64; m++) {
            desc_row(w.da, m, row, w.loc, nullptr);
            for (int i = 0; i < k; i++) a[size_t(m * k + i)] = a_u8 ? float(uint8_t(row[i])) : value(row, i);
        }
    for (int c = 0; c < n; c++) {
        desc_row(w.db, c, row, w.loc, nullptr);
        for (int i = 0; i < k; i++) bt[size_t(i * n + c)] = value(row, i);
    }
    gemm_rows(a.data(), bt.data(), d.data(), 64, n, k);
    for (int t = 0; t < 128; t++)
        for (int i = 0; i < n / 2; i++) {
            int m = t / 32 * 16 + t % 32 / 4 + 8 * (i >> 1 & 1), c = 8 * (i >> 2) + t % 4 * 2 + (i & 1);
            float x = d[size_t(m * n + c)];
            if (s8) {
                auto *o = static_cast<int32_t *>(w.d[t]) + i;
                *o = int32_t((w.scale ? uint32_t(*o) : 0u) + uint32_t(int32_t(x)));
            } else {
                auto *o = static_cast<float *>(w.d[t]) + i;
                *o = (w.scale ? *o : 0.f) + x;
            }
        }
}
void wg_hold(WgmmaOp &op) { // take the accumulators away until the wait
    for (auto &[p, n] : op.acc) {
        auto at = op.saved.size();
        op.saved.resize(at + n);
        std::memcpy(op.saved.data() + at, p, n);
        garbage(p, n);
    }
    op.holds = true;
}
void wg_give_back(WgmmaOp &op) {
    size_t at = 0;
    for (auto &[p, n] : op.acc) {
        std::memcpy(p, op.saved.data() + at, n);
        at += n;
    }
    op.saved.clear();
    op.holds = false;
}
} // namespace

void wgmma_fence(Loc loc) {
    warpgroup_collective(
        nullptr, [](void *const *, int g) { self_block()->groups[size_t(g)].fenced = true; }, "wgmma.fence", loc);
}
void wgmma(Wgmma kind, int n, void *d, const uint32_t *a, uint64_t da, uint64_t db, bool scale, Loc loc) {
    if (n % 8 || n < 8 || n > 256) fail(loc, "wgmma: n = %d", n);
    WgArgs x{kind, n, d, a, da, db, scale, loc};
    warpgroup_collective(
        &x,
        [](void *const *p, int g) {
            WarpGroup &wg = self_block()->groups[size_t(g)];
            auto *f = static_cast<WgArgs *>(p[0]);
            if (!wg.fenced) fail(f->loc, "wgmma without wgmma.fence after the accumulators were last free");
            auto work = std::make_shared<WgWork>();
            *work = {f->kind, f->n, f->scale, f->a != nullptr, f->da, f->db, {}, {}, f->loc};
            auto op = std::make_shared<WgmmaOp>();
            for (int t = 0; t < 128; t++) {
                auto *y = static_cast<WgArgs *>(p[t]);
                if (y->da != f->da || y->db != f->db || y->scale != f->scale)
                    fail(f->loc, "wgmma: descriptors differ between threads 0 and %d", t);
                if (y->a) std::memcpy(work->areg[t], y->a, 16);
                work->d[t] = y->d;
                op->acc.push_back({y->d, size_t(f->n / 2 * 4)});
            }
            desc_check(f->db, f->loc);
            if (!f->a) desc_check(f->da, f->loc);
            op->run = [work](WgmmaOp &) { wg_run(*work); };
            if (f->a) {
                std::array<const uint32_t *, 128> at;
                for (int t = 0; t < 128; t++) at[size_t(t)] = static_cast<WgArgs *>(p[t])->a;
                op->check_a = [work, at] {
                    for (int t = 0; t < 128; t++)
                        if (std::memcmp(at[size_t(t)], work->areg[t], 16))
                            fail(work->loc, "wgmma: thread %d changed its A registers before the wait", t);
                };
            }
            if (self_block()->race) {
                char row[32];
                if (!f->a)
                    for (int r = 0; r < 64; r++) desc_row(f->da, r, row, f->loc, &op->reads);
                for (int r = 0; r < f->n; r++) desc_row(f->db, r, row, f->loc, &op->reads);
                for (auto &[o, len] : op->reads) race_async_read_begin(self(), o, len, f->loc, "wgmma operand");
            }
            bool idle = wg.open.empty() && wg.groups.empty();
            bool chained = false; // an earlier operation in flight already holds these accumulators
            auto holds = [&](auto &v) {
                for (auto &o : v)
                    if (o->acc[0].first == op->acc[0].first) chained = true;
            };
            for (auto &gr : wg.groups) holds(gr);
            holds(wg.open);
            bool now = t_runner->async_now() || (t_runner->opt.async == Async::Random && idle && coin());
            if (now) {
                op->run(*op);
                op->run = nullptr;
            }
            if (!t_runner->async_now() && !chained) wg_hold(*op);
            wg.open.push_back(op);
        },
        "wgmma", loc);
}
void wgmma_commit(Loc loc) {
    warpgroup_collective(
        nullptr,
        [](void *const *, int g) {
            WarpGroup &wg = self_block()->groups[size_t(g)];
            wg.groups.push_back(std::move(wg.open));
            wg.open.clear();
        },
        "wgmma.commit_group", loc);
}
void wgmma_wait(unsigned keep, Loc loc) {
    struct W {
        unsigned keep;
    } w{keep};
    warpgroup_collective(
        &w,
        [](void *const *p, int g) {
            WarpGroup &wg = self_block()->groups[size_t(g)];
            unsigned k = static_cast<W *>(p[0])->keep;
            while (wg.groups.size() > k) {
                for (auto &op : wg.groups.front()) {
                    if (op->check_a) op->check_a();
                    if (op->holds) wg_give_back(*op);
                    if (op->run) op->run(*op);
                    for (auto &[o, len] : op->reads) race_async_read_end(self(), o, len, true);
                    // A later operation in flight on the same registers takes them over.
                    auto it = std::find(wg.groups.front().begin(), wg.groups.front().end(), op);
                    auto take = [&](auto b, auto e) {
                        for (; b != e; ++b)
                            if ((*b)->acc[0].first == op->acc[0].first && !t_runner->async_now()) {
                                wg_hold(**b);
                                return true;
                            }
                        return false;
                    };
                    bool done = take(it + 1, wg.groups.front().end());
                    for (size_t i = 1; !done && i < wg.groups.size(); i++)
                        done = take(wg.groups[i].begin(), wg.groups[i].end());
                    if (!done) take(wg.open.begin(), wg.open.end());
                }
                wg.groups.pop_front();
            }
            if (wg.groups.empty() && wg.open.empty()) wg.fenced = false;
        },
        "wgmma.wait_group", loc);
}

} // namespace simt
