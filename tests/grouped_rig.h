// Grouped linears against one qe_linear for each expert: the same bits in every row of a group, and nothing written outside.
#ifndef GROUPED_RIG_H
#define GROUPED_RIG_H
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <qengine/gemm.h>
#include <qengine/num.h>
#include "device_memory.h"
#include "support.h"

namespace grouped {

constexpr int kSignInput = -2;
struct Case {
    const char *name, *scheme;
    int act_group;          // -1: float input; 0: per token; kSignInput
    int32_t x_type, y_type; // INT: codes on static int8 grids
    uint32_t flags;
    const char *layout;     // on CUDA
};
const Case cases[] = {
    {"w8a8", "int8:channel:f32", 0, QE_CODE_F16, QE_CODE_F32, 0, "cuda/w8a8"},
    {"w8a8_residual", "int8:channel:f32", 0, QE_CODE_F32, QE_CODE_F16, QE_LINEAR_RESIDUAL, "cuda/w8a8"},
    {"w8a8_int8_out", "int8:channel:f32", 0, QE_CODE_F32, QE_CODE_INT, 0, "cuda/w8a8"},
    {"w8a8_fixed_point", "int8:channel:f32", 0, QE_CODE_F32, QE_CODE_INT, QE_LINEAR_FIXED_POINT, "cuda/w8a8"},
    {"w8a8_int8_in", "int8:channel:f32", 0, QE_CODE_INT, QE_CODE_F16, QE_LINEAR_RESIDUAL, "cuda/w8a8"},
    {"w8a8_int8_in_out", "int8:channel:f32", 0, QE_CODE_INT, QE_CODE_INT, 0, "cuda/w8a8"},
    {"w4a8_int8_in", "int4:channel:f32", 0, QE_CODE_INT, QE_CODE_F32, 0, "cuda/w4a8"},
    {"w4a8", "int4:g128:u8:s=f16/channel", 0, QE_CODE_F16, QE_CODE_F16, 0, "cuda/w4a8"},
    {"w4a8_channel", "int4:channel:f32", 0, QE_CODE_F16, QE_CODE_INT, 0, "cuda/w4a8"},
    {"w2a8", "int2:channel:f32:z=1", 0, QE_CODE_F16, QE_CODE_F16, 0, "cuda/w2a8"},
    {"w1a8_int8_out", "sign:channel:f32", 0, QE_CODE_F16, QE_CODE_INT, 0, "cuda/w2a8"},
    {"w1a1", "sign:channel:f32", kSignInput, QE_CODE_F16, QE_CODE_F32, 0, "cuda/w1a1"},
    {"w4a16", "int4:g128:f16:z=u8", -1, QE_CODE_F16, QE_CODE_F16, 0, "cuda/w4a16"},
    {"w4a16_bf16", "int4:g32:f16", -1, QE_CODE_BF16, QE_CODE_F32, 0, "cuda/w4a16"},
    {"w4a16_f32", "int4:g128:f16", -1, QE_CODE_F32, QE_CODE_F32, 0, "cuda/w4a16"},
    {"nf4a16", "nf4:g64:f32", -1, QE_CODE_F16, QE_CODE_F32, 0, "cuda/wxa16"},
    {"codebook_a16", "lut4:g64:f32", -1, QE_CODE_F16, QE_CODE_F32, 0, "cuda/wxa16"}, // a table an expert
    {"w8a16", "int8:g128:f16", -1, QE_CODE_BF16, QE_CODE_BF16, 0, "cuda/wxa16"},
    {"w8a16_f32", "int8:g128:f16", -1, QE_CODE_F32, QE_CODE_F32, 0, "cuda/wxa16"},
    {"q4_k", "int4:g32:u6:s=f16/g256:b=u6", 256, QE_CODE_F16, QE_CODE_F32, 0, "cuda/k"},
    {"q4_k_a16", "int4:g32:u6:s=f16/g256:b=u6", -1, QE_CODE_F16, QE_CODE_F32, 0, "cuda/k"},
    {"q4_k_f32", "int4:g32:u6:s=f16/g256:b=u6", -1, QE_CODE_F32, QE_CODE_F32, 0, "cuda/k"},
    {"q6_k", "int6:g16:s8:s=f16/g256:z=32", 256, QE_CODE_BF16, QE_CODE_F16, 0, "cuda/k"},
    {"q6_k_bf16", "int6:g16:s8:s=f16/g256:z=32", -1, QE_CODE_BF16, QE_CODE_BF16, QE_LINEAR_RESIDUAL, "cuda/k"},
    {"w3a8_biases", "int3:g64:f16:b=f16", 0, QE_CODE_F16, QE_CODE_F32, 0, "cuda/any"},
    {"w3a16_biases", "int3:g64:f16:b=f16", -1, QE_CODE_F16, QE_CODE_F32, 0, "cuda/any"},
    {"w3a16_biases_bf16", "int3:g64:f16:b=f16", -1, QE_CODE_BF16, QE_CODE_BF16, QE_LINEAR_RESIDUAL, "cuda/any"},
};

struct Tensor : qe_qtensor {
    std::vector<char> memory;
    Tensor(const char *scheme, int64_t rows_, int64_t k_, unsigned seed) {
        qe_quant q;
        qe_error err = {};
        EXPECT_EQ(qe_quant_parse(scheme, &q, &err), QE_OK) << scheme << ": " << err.message;
        memory.resize(qe_qtensor_bytes(&q, rows_, k_, 0) + 64);
        char *base = (char *)(((uintptr_t)memory.data() + 63) & ~(uintptr_t)63);
        EXPECT_EQ(qe_qtensor_place(this, &q, rows_, k_, 0, base, memory.size() - 64, &err), QE_OK) << err.message;
        qe_test::Random random(seed);
        std::vector<float> w((size_t)(rows_ * k_));
        for (float &v : w) v = random.uniform(-1, 1);
        if (q.code == QE_CODE_LUT) { // the quantizer makes no tables
            for (int c = 0; c < 1 << q.bits; c++) this->lut[c] = (float)(c - 7) * (1.0f + (float)seed * 0.125f);
            for (int64_t i = 0; i < rows_ * k_; i++) ((uint8_t *)codes)[i] = (uint8_t)random.below(16);
            for (int64_t i = 0; i < rows_ * ((k_ + q.group_k - 1) / q.group_k); i++) ((float *)scales)[i] = random.uniform(0.1f, 1);
            return;
        }
        EXPECT_EQ(qe_quantize(w.data(), k_, 0, this, &err), QE_OK) << scheme << ": " << err.message;
    }
};

inline size_t bytes_of(int32_t type) { return type == QE_CODE_F32 ? 4 : type == QE_CODE_INT ? 1 : 2; }

inline qe_act act_of(const Case &c, bool output) {
    qe_act act;
    memset(&act, 0, sizeof act);
    if (c.act_group == kSignInput) {
        act.mode = QE_ACT_DYNAMIC;
        qe_quant_parse("sign:channel:f32", &act.quant, nullptr);
    }
    if (c.act_group < 0) return act;
    act.mode = c.x_type == QE_CODE_INT || c.y_type == QE_CODE_INT ? QE_ACT_STATIC : QE_ACT_DYNAMIC;
    act.quant.code = QE_CODE_INT, act.quant.bits = 8, act.quant.scale = QE_NUM_F32, act.quant.group_n = 1;
    act.quant.group_k = c.act_group;
    act.quant.zero_const = 128;
    if (act.mode == QE_ACT_STATIC) {
        act.quant.zero = QE_ZERO_POINT, act.quant.zero_num = QE_NUM_U8, act.quant.group_n = 0, act.quant.zero_const = 0;
        act.scale = output ? 0.25f : 0.015f, act.zero = output ? 120 : 133;
    }
    return act;
}

// The experts of a case, together and one by one.
struct Experts {
    const Case &c;
    int64_t n, k;
    qe_device *device;
    std::vector<std::unique_ptr<Tensor>> weights;
    std::vector<float> bias;
    qe_linear *together = nullptr;
    std::vector<qe_linear *> single;

    Experts(qe_device *d, const Case &c_, int experts, int64_t n_, int64_t k_) : c(c_), n(n_), k(k_), device(d) {
        qe_error err = {};
        qe_test::Random random(77);
        bias.resize((size_t)(experts * n));
        for (float &b : bias) b = random.uniform(-3, 3);
        const qe_act act = act_of(c, false), y_act = act_of(c, true);
        qe_linear_options o = {};
        o.struct_size = sizeof o, o.act = &act, o.flags = c.flags, o.y_type = c.y_type;
        if (c.y_type == QE_CODE_INT) o.y_act = &y_act;
        std::vector<const qe_qtensor *> all;
        for (int e = 0; e < experts; e++) {
            weights.push_back(std::make_unique<Tensor>(c.scheme, n, k, (unsigned)e + 1));
            all.push_back(weights.back().get());
            o.bias = bias.data() + e * n;
            single.push_back(nullptr);
            EXPECT_EQ(qe_linear_create(d, all.back(), &o, &single.back(), &err), QE_OK) << c.name << ": " << err.message;
        }
        o.bias = bias.data();
        EXPECT_EQ(qe_linear_create_grouped(d, all.data(), experts, &o, &together, &err), QE_OK) << c.name << ": " << err.message;
    }
    ~Experts() {
        qe_linear_destroy(together);
        for (qe_linear *l : single) qe_linear_destroy(l);
    }
    Experts(const Experts &) = delete;
    int32_t count() const { return (int32_t)single.size(); }
};

// Rows of x and y for a layout, with the group each expert really has.
struct Call {
    int32_t layout;
    int64_t m;                     // as in args
    std::vector<int32_t> rows;     // as given
    std::vector<int64_t> first, counts;
    Call(int32_t layout_, int64_t m_, std::vector<int32_t> given) : layout(layout_), m(m_), rows(given) {
        const bool masked = layout == QE_GROUPS_MASKED;
        auto within = [](int64_t v, int64_t low, int64_t high) { return v < low ? low : v > high ? high : v; };
        int64_t at = masked ? 0 : within(given[0], 0, m);
        for (size_t e = 0; e + !masked < given.size(); e++) {
            const int64_t end = masked ? 0 : within(given[e + 1], at, m);
            first.push_back(masked ? (int64_t)e * m : at);
            counts.push_back(masked ? within(given[e], 0, m) : end - at);
            at = end;
        }
    }
    int64_t total() const { return layout == QE_GROUPS_MASKED ? m * (int64_t)rows.size() : m; }
};

struct Buffers {
    const Experts &e;
    const Call &call;
    int64_t ldx, ldy, total;
    Memory x, y, residual, rows, workspace;
    Buffers(const Experts &e_, const Call &call_)
        : e(e_), call(call_), ldx(e.k + 3), ldy(e.n + 5), total(call.total()),
          x(e.device, (size_t)(total * ldx) * bytes_of(e.c.x_type)), y(e.device, (size_t)(total * ldy) * bytes_of(e.c.y_type)),
          residual(e.device, y.bytes), rows(e.device, call.rows.size() * 4, call.rows.data()),
          workspace(e.device, qe_linear_workspace_grouped(e.together, call.layout, call.m, e.c.x_type)) {
        qe_test::Random random(5);
        fill(x, e.c.x_type, random), fill(residual, e.c.y_type, random);
    }
    static void fill(const Memory &to, int32_t type, qe_test::Random &random) {
        std::vector<char> host(to.bytes);
        for (size_t i = 0; i < to.bytes / bytes_of(type); i++) {
            const float v = random.uniform(-2, 2);
            const uint16_t half = type == QE_CODE_F16 ? qe_f32_to_f16(v) : qe_f32_to_bf16(v);
            if (type == QE_CODE_F32) memcpy(&host[i * 4], &v, 4);
            else if (type == QE_CODE_INT) host[i] = (char)(int8_t)(v * 64);
            else memcpy(&host[i * 2], &half, 2);
        }
        to.copy(to.data, host.data());
    }
    qe_linear_args args() const {
        qe_linear_args a = {};
        a.struct_size = sizeof a, a.m = call.m, a.x = x.data, a.ldx = ldx, a.x_type = e.c.x_type, a.y = y.data, a.ldy = ldy;
        if (e.c.flags & QE_LINEAR_RESIDUAL) a.residual = residual.data, a.ldr = ldy;
        a.workspace = workspace.data, a.workspace_bytes = workspace.bytes;
        return a;
    }
    qe_linear_groups groups() const {
        qe_linear_groups g = {};
        g.struct_size = sizeof g, g.layout = call.layout, g.rows = (const int32_t *)rows.data;
        return g;
    }
    void clear() { y.copy(y.data, std::vector<char>(y.bytes, 0x5a).data()); }
    std::vector<char> read() const {
        std::vector<char> host(y.bytes);
        y.copy(host.data(), y.data);
        return host;
    }
    std::vector<char> one_by_one() {
        clear();
        for (int32_t i = 0; i < e.count(); i++) {
            const int64_t first = call.first[(size_t)i];
            qe_linear_args a = args();
            a.m = call.counts[(size_t)i];
            if (!a.m) continue;
            a.x = (char *)x.data + (size_t)(first * ldx) * bytes_of(e.c.x_type);
            a.y = (char *)y.data + (size_t)(first * ldy) * bytes_of(e.c.y_type);
            if (a.residual) a.residual = (char *)residual.data + (size_t)(first * ldy) * bytes_of(e.c.y_type);
            Memory own(e.device, a.workspace_bytes = qe_linear_workspace(e.single[(size_t)i], a.m, a.x_type));
            a.workspace = own.data;
            qe_error err = {};
            EXPECT_EQ(qe_linear_run(e.single[(size_t)i], &a, &err), QE_OK) << err.message;
        }
        return read();
    }
    std::vector<char> together() {
        clear();
        qe_error err = {};
        const qe_linear_args a = args();
        const qe_linear_groups g = groups();
        EXPECT_EQ(qe_linear_run_grouped(e.together, &a, &g, &err), QE_OK) << e.c.name << ": " << err.message;
        return read();
    }
};

inline std::string first_difference(const std::vector<char> &got, const std::vector<char> &want, const Buffers &b) {
    const size_t size = bytes_of(b.e.c.y_type);
    for (size_t i = 0; i < got.size(); i++)
        if (got[i] != want[i])
            return "y[" + std::to_string(i / size / (size_t)b.ldy) + "][" + std::to_string(i / size % (size_t)b.ldy) + "]";
    return "";
}

// Of four experts.
inline std::vector<Call> small_calls() {
    const int32_t C = QE_GROUPS_CONTIGUOUS, M = QE_GROUPS_MASKED;
    return {{C, 17, {0, 0, 0, 0, 0}}, {C, 1, {0, 0, 0, 1, 1}},   {C, 17, {0, 3, 3, 10, 11}}, {C, 17, {0, 0, 17, 17, 17}},
            {C, 20, {2, 7, 12, 17, 18}}, {C, 70, {0, 1, 1, 37, 70}}, {M, 17, {0, 0, 0, 0}}, {M, 1, {0, 1, 0, 1}},
            {M, 9, {3, 0, 9, 1}},     {M, 17, {0, 17, 0, 0}},    {M, 40, {40, 5, 33, 16}}};
}
// Counts no caller may give; the host says so, a device brings them into range.
inline std::vector<Call> bad_calls() {
    const int32_t C = QE_GROUPS_CONTIGUOUS, M = QE_GROUPS_MASKED;
    return {{C, 17, {0, 9, 5, 17, 17}}, {C, 17, {-4, 2, 3, 4, 5}}, {C, 17, {0, 1, 2, 3, 18}}, {C, 17, {0, 99, INT32_MIN, 4, 5}},
            {M, 9, {10, 0, 0, 0}},      {M, 9, {0, -1, 3, 0}},     {M, 9, {INT32_MAX, INT32_MIN, 9, 1}}};
}

} // namespace grouped
#endif
