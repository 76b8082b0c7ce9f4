/* Checkpoint writers: what is written is read back by the engine's own readers, every array bit for bit; and nothing that is
 * not whole ever stands where a checkpoint is expected. */
#include <csignal>
#include <fstream>
#include <sys/resource.h>
#include <sys/stat.h>

#include "format/write_weights.h"
#include "packed_builders.h"

using qe_test::has_status;
using qe_test::is_ok;
using qe_test::TempFolder;

namespace {

/* A canonical tensor with random contents that its scheme allows. */
struct Made {
    build::Band band;
    std::vector<uint32_t> order;
    std::vector<float> col_scale;
    Made(const char *scheme, int64_t n, int64_t k, uint64_t seed, bool with_order, bool with_scale) {
        qe_error err{};
        qe_quant q;
        EXPECT_TRUE(is_ok(qe_quant_parse(scheme, &q, &err), err)) << scheme;
        band.place(q, n, k);
        qe_test::Random r(seed);
        std::vector<float> w((size_t)(n * k));
        for (auto &x : w) x = r.normal() * 0.05f;
        if (q.code == QE_CODE_LUT) {
            int64_t tables = q.lut_n ? (n + q.lut_n - 1) / q.lut_n : 1;
            for (int64_t i = 0; i < tables << q.bits; i++) band.t.lut[i] = r.normal() * 0.05f;
        }
        EXPECT_TRUE(is_ok(qe_quantize(w.data(), k, q.code == QE_CODE_LUT ? QE_QUANTIZE_KEEP_SCALES : 0, &band.t, &err), err)) << scheme;
        if (with_order) {
            for (int64_t i = 0; i < k; i++) order.push_back((uint32_t)i);
            for (int64_t i = k - 1; i > 0; i--) std::swap(order[i], order[r.below((uint32_t)i + 1)]);
            /* Inside a group the reader's sort is stable. */
            int64_t g = q.group_k ? q.group_k : k;
            for (int64_t at = 0; at < k; at += g) std::sort(order.begin() + at, order.begin() + std::min(k, at + g));
            band.t.order = order.data();
        }
        if (with_scale) {
            for (int64_t i = 0; i < k; i++) col_scale.push_back(r.uniform(0.5f, 2));
            band.t.col_scale = col_scale.data();
        }
    }
};

std::string dump(json_t *json) {
    char *text = json_dumps(json, 0);
    std::string out = text ? text : "";
    free(text);
    json_decref(json);
    return out;
}

struct Written {
    TempFolder folder;
    std::string path;
    qe_error err{};
    qe_status status;
    qe_store *store = nullptr;
    qe_weight_out w{};
    Written(const qe_weight_format &f, const qe_qtensor &t, const std::string &module) : path(folder.file(f.kind == QE_OUT_GGUF ? "m.gguf" : "m")) {
        qe_out_options o = {path.c_str(), "test", f.kind, false, 0, 0};
        qe_out *out = nullptr;
        w.module = module.c_str();
        w.form = t;
        for (auto &i : w.index) i = -1;
        status = f.check(&w, &err);
        if (!status) status = qe_out_create(&o, &out, &err);
        if (!status) status = f.declare(out, &w, &err);
        if (!status && f.kind == QE_OUT_GGUF) {
            std::string keys = build::kv_str("general.architecture", "llama") + build::kv_u32("general.quantization_version", 2);
            status = qe_out_keys(out, keys.data(), keys.size(), 2, &err);
        }
        if (!status) status = qe_out_begin(out, &err);
        if (!status) status = f.put(out, &w, &t, &err);
        if (!status && f.kind == QE_OUT_SAFETENSORS) {
            std::string config = "{\"quantization_config\":" + dump(f.settings(&w, 1, nullptr, 0)) + "}";
            status = qe_out_side(out, "config.json", config.data(), config.size(), &err);
        }
        if (!status) status = qe_out_commit(out, nullptr, &err);
        qe_out_destroy(out);
        if (!status) status = qe_store_open(path.c_str(), 0, nullptr, &store, &err);
    }
    ~Written() { qe_store_close(store); }
};

void expect_same(const Written &out, const std::string &name, const qe_qtensor &t) {
    int64_t index = qe_store_find(out.store, name.c_str());
    ASSERT_GE(index, 0) << name;
    qe_qtensor form;
    int32_t known;
    qe_store_form(out.store, index, &form, &known);
    ASSERT_EQ(memcmp(&form.quant, &t.quant, sizeof t.quant), 0);
    EXPECT_EQ(form.rows, t.n);
    EXPECT_EQ(form.k, t.k);
    EXPECT_EQ(form.act.mode, t.act.mode);
    EXPECT_EQ(form.act.scale, t.act.scale);
    EXPECT_EQ(form.act.zero, t.act.zero);
    EXPECT_EQ(form.hadamard, t.hadamard);
    ASSERT_EQ(form.order == nullptr, t.order == nullptr);
    ASSERT_EQ(form.col_scale == nullptr, t.col_scale == nullptr);
    if (t.order) {
        EXPECT_TRUE(qe_test::same_bits(form.order, t.order, (size_t)t.k));
    }
    if (t.col_scale) {
        EXPECT_TRUE(qe_test::same_bits(form.col_scale, t.col_scale, (size_t)t.k));
    }
    int64_t step = qe_quant_band_rows(&t.quant);
    step = step ? (16 + step - 1) / step * step : t.n;
    std::vector<float> got((size_t)(t.n * t.k)), expected(got);
    qe_error err{};
    for (int64_t row = 0; row < t.n; row += step) {
        build::Band b;
        int64_t rows = std::min(step, t.n - row);
        b.place(form.quant, rows, t.k);
        ASSERT_TRUE(is_ok(qe_store_read(out.store, index, row, rows, nullptr, &b.t, &err), err));
        size_t each = t.quant.bits > 8 ? t.quant.bits / 8 : 1;
        ASSERT_EQ(memcmp(b.t.codes, (char *)t.codes + (size_t)(row * t.k) * each, (size_t)(rows * t.k) * each), 0) << row;
        ASSERT_TRUE(is_ok(qe_dequantize(&b.t, 0, rows, got.data() + row * t.k, t.k, &err), err));
    }
    qe_qtensor plain = t;
    plain.order = nullptr;
    ASSERT_TRUE(is_ok(qe_dequantize(&plain, 0, t.n, expected.data(), t.k, &err), err));
    EXPECT_TRUE(qe_test::same_bits(got, expected));
}

struct Case {
    const qe_weight_format *format;
    const char *scheme;
    bool order, scale;
    int act;                 /* qe_act_mode */
};

const Case cases[] = {
    {&qe_format_compressed, "int4:g64:f16", false, false, 0}, {&qe_format_compressed, "int4:g64:bf16:z=u8", true, false, 0},
    {&qe_format_compressed, "int3:g32:f32", true, false, 0}, {&qe_format_compressed, "int5:channel:f16:z=u8", false, false, 0},
    {&qe_format_compressed, "int2:g32:f16", false, false, 0}, {&qe_format_compressed, "int8:channel:f32", false, false, 0},
    {&qe_format_compressed, "int8:channel:f32", false, false, 1}, {&qe_format_compressed, "int8:channel:f32", false, false, 2},
    {&qe_format_compressed, "int8:tensor:f32", false, false, 2}, {&qe_format_compressed, "int4:g64:f16", false, false, 1},
    {&qe_format_gptq, "int4:g64:f16", true, false, 0}, {&qe_format_gptq, "int4:g64:f16:z=u8", true, false, 0},
    {&qe_format_gptq, "int8:channel:f16", false, false, 0}, {&qe_format_gptq, "int3:g32:bf16:z=u8", false, false, 0},
    {&qe_format_gptq, "int2:g64:f16", false, false, 0}, {&qe_format_gptq, "int3:g64:f16", true, false, 0},
    {&qe_format_gguf, "int4:g32:f16", false, false, 0}, {&qe_format_gguf, "int5:g32:f16", false, false, 0},
    {&qe_format_gguf, "int8:g32:f16", false, false, 0}, {&qe_format_gguf, "iq4nl:g32:f16", false, false, 0},
    {&qe_format_gguf, "int4:g32:u6:s=f16/g256:b=u6", false, false, 0},
    {&qe_format_gguf, "int6:g16:s8:s=f16/g256", false, false, 0}, {&qe_format_gguf, "f16", false, false, 0},
    {&qe_format_gguf, "f32", false, false, 0}, {&qe_format_gguf, "bf16", false, false, 0},
    {&qe_format_native, "int4:g64:f16", true, true, 0}, {&qe_format_native, "int4:g64:f16:z=u8", false, false, 1},
    {&qe_format_native, "int4:g64:u8:s=f16/channel", false, true, 1}, {&qe_format_native, "int4:g64:u8:s=f32/channel:z=u8", false, false, 1},
    {&qe_format_native, "int3:g32:f16:z=u8", true, false, 0}, {&qe_format_native, "nf4:g64:f32", false, false, 0},
    {&qe_format_native, "fp4b:g64:f16", false, false, 0}, {&qe_format_native, "iq4nl:g32:f16", false, false, 0},
    {&qe_format_native, "e2m1:g32:e8m0", false, false, 0}, {&qe_format_native, "e2m1:g16:e4m3:s=f32/tensor", false, false, 0},
    {&qe_format_native, "int8:g32:e8m0^-6", false, false, 0}, {&qe_format_native, "int8:g2:pow2n^-6:s=e8m0/g16", false, false, 0},
    {&qe_format_native, "int5:g2:pow2n^-3:s=e8m0/g16", false, false, 0}, {&qe_format_native, "lut4:t=1", false, false, 0},
    {&qe_format_native, "lut3", false, false, 0}, {&qe_format_native, "int2:channel:f16:z=1", false, false, 0},
    {&qe_format_native, "sign:channel:f16", false, false, 0}, {&qe_format_native, "e4m3:channel:f32", false, false, 0},
    {&qe_format_native, "int4:g32:u6:s=f16/g256:b=u6", false, false, 0}, {&qe_format_native, "int6:g16:s8:s=f16/g256", false, false, 0},
    {&qe_format_native, "int8:channel:f32", false, false, 2}, {&qe_format_native, "e4m3:128x128:f32", false, false, 0},
    {&qe_format_native, "f16", false, false, 0},
};

class RoundTrip : public testing::TestWithParam<int> {};

TEST_P(RoundTrip, EveryArrayBitForBit) {
    const Case &c = cases[GetParam()];
    Made m(c.scheme, 96, 512, 7 + (uint64_t)GetParam(), c.order, c.scale);
    if (c.act) {
        m.band.t.act.mode = c.act;
        m.band.t.act.quant = {QE_CODE_INT, 8, QE_NUM_F32, 0, 0, 0, 0, 0, 128, 0, c.act == QE_ACT_DYNAMIC, 0, 0, 0, 0};
        if (c.act == QE_ACT_STATIC) m.band.t.act.scale = 0.03125f, m.band.t.act.zero = 128;
    }
    if (c.format == &qe_format_native && c.act == 1) m.band.t.hadamard = 128;
    const bool gguf = c.format->kind == QE_OUT_GGUF;
    Written out(*c.format, m.band.t, gguf ? "blk.0.ffn_up.weight" : "model.layers.0.mlp.up_proj");
    ASSERT_TRUE(is_ok(out.status, out.err)) << c.format->name << " " << c.scheme;
    expect_same(out, gguf ? "blk.0.ffn_up.weight" : "model.layers.0.mlp.up_proj.weight", m.band.t);
    EXPECT_NE(access((out.path + ".partial").c_str(), F_OK), 0);
}
INSTANTIATE_TEST_SUITE_P(Schemes, RoundTrip, testing::Range(0, (int)(sizeof cases / sizeof cases[0])));

TEST(Formats, RefuseWhatTheyCannotHold) {
    const struct { const qe_weight_format *f; const char *scheme; bool scale; int act; } refused[] = {
        {&qe_format_compressed, "nf4:g64:f32", false, 0}, {&qe_format_compressed, "int4:g64:f16", true, 0},
        {&qe_format_compressed, "int4:g32:u6:s=f16/g256:b=u6", false, 0}, {&qe_format_compressed, "int2:channel:f16:z=1", false, 0},
        {&qe_format_gptq, "int5:g64:f16", false, 0}, {&qe_format_gptq, "int4:g64:f32", false, 0}, {&qe_format_gptq, "int4:g64:f16", false, 1},
        {&qe_format_gptq, "int4:g96:f16", false, 0}, {&qe_format_gguf, "int4:g64:f16", false, 0}, {&qe_format_gguf, "int4:g32:f16", true, 0},
    };
    for (const auto &c : refused) {
        Made m(c.scheme, 64, 512, 3, false, c.scale);
        m.band.t.act.mode = c.act;
        Written out(*c.f, m.band.t, "m");
        EXPECT_TRUE(has_status(out.status, QE_E_UNSUPPORTED, out.err)) << c.f->name << " " << c.scheme;
    }
}

/* ---- the folder ---- */
struct Job {
    qe_out *out = nullptr;
    qe_error err{};
    std::string name;
    qe_status start(const std::string &path, const char *identity, bool resume, int tensors = 4, uint64_t shard = 0) {
        qe_out_options o = {path.c_str(), identity, QE_OUT_SAFETENSORS, resume, shard, 256};
        qe_status s = qe_out_create(&o, &out, &err);
        const int64_t dims[2] = {16, 8};
        for (int i = 0; i < tensors && !s; i++) {
            int64_t index;
            s = qe_out_declare(out, ("t" + std::to_string(i)).c_str(), "F32", 2, dims, 512, &index, &err);
        }
        return s ? s : qe_out_begin(out, &err);
    }
    qe_status put(int i) {
        std::vector<float> data(128, (float)i);
        return qe_out_put(out, i, 0, data.data(), 512, &err);
    }
    ~Job() { qe_out_destroy(out); }
};

std::map<std::string, std::string> contents(const std::string &folder) {
    std::map<std::string, std::string> out;
    for (const char *name : {"model.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json", "journal"}) {
        std::string path = folder + "/" + name;
        if (!access(path.c_str(), F_OK)) out[name] = qe_test::read_file(path);
    }
    return out;
}

TEST(Folder, ResumedRunsGiveTheSameBytes) {
    for (uint64_t shard : {(uint64_t)0, (uint64_t)1024}) {
        TempFolder folder;
        json_t *notes = json_pack("{s:s}", "qengine.report", "x");
        {
            Job whole;
            ASSERT_TRUE(is_ok(whole.start(folder.file("a"), "run", false, 4, shard), whole.err));
            for (int i = 0; i < 4; i++) ASSERT_EQ(whole.put(i), QE_OK);
            ASSERT_TRUE(is_ok(qe_out_commit(whole.out, notes, &whole.err), whole.err));
        }
        auto expected = contents(folder.file("a"));
        ASSERT_EQ(expected.size(), shard ? 3u : 1u);
        for (int stop = 0; stop <= 4; stop++) {
            std::string path = folder.file("b" + std::to_string(stop));
            {
                Job first;
                ASSERT_TRUE(is_ok(first.start(path, "run", false, 4, shard), first.err));
                for (int i = 0; i < stop; i++) ASSERT_TRUE(!first.put(i) && !qe_out_mark(first.out, &first.err));
                if (stop < 4) first.put(stop);          /* written, not marked: must be written again */
            }
            EXPECT_NE(access(path.c_str(), F_OK), 0) << "a half-written checkpoint stands at its place";
            EXPECT_EQ(access((path + ".partial").c_str(), F_OK) == 0, stop > 0);
            Job again;
            ASSERT_TRUE(is_ok(again.start(path, "run", true, 4, shard), again.err));
            for (int i = 0; i < 4; i++) {
                EXPECT_EQ(qe_out_done(again.out, i), i < stop) << i;
                if (!qe_out_done(again.out, i)) {
                    ASSERT_EQ(again.put(i), QE_OK);
                }
            }
            ASSERT_TRUE(is_ok(qe_out_commit(again.out, notes, &again.err), again.err));
            EXPECT_EQ(contents(path), expected) << stop;
            EXPECT_NE(access((path + ".partial").c_str(), F_OK), 0);
        }
        json_decref(notes);
    }
}

TEST(Folder, DamagedAndForeignRunsAreNotContinued) {
    TempFolder folder;
    std::string path = folder.file("m"), file = path + ".partial/model.safetensors", journal = path + ".partial/journal";
    {
        Job first;
        ASSERT_TRUE(is_ok(first.start(path, "run", false), first.err));
        for (int i = 0; i < 2; i++) ASSERT_TRUE(!first.put(i) && !qe_out_mark(first.out, &first.err));
    }
    Job without;
    EXPECT_TRUE(has_status(without.start(path, "run", false), QE_E_STATE, without.err));
    Job other;
    EXPECT_TRUE(has_status(other.start(path, "another run", true), QE_E_MISMATCH, other.err));
    Job more;
    EXPECT_TRUE(has_status(more.start(path, "run", true, 5), QE_E_MISMATCH, more.err));
    std::string bytes = qe_test::read_file(file), lines = qe_test::read_file(journal);
    bytes[bytes.size() - 512 * 3 + 7] ^= 1;     /* in tensor 1 */
    std::ofstream(file, std::ios::binary) << bytes;
    {
        Job again;
        ASSERT_TRUE(is_ok(again.start(path, "run", true), again.err));
        EXPECT_TRUE(qe_out_done(again.out, 0));
        EXPECT_FALSE(qe_out_done(again.out, 1)) << "its bytes are not those of the journal";
    }
    std::ofstream(journal, std::ios::binary) << lines.substr(0, lines.size() - 3);
    Job cut;
    ASSERT_TRUE(is_ok(cut.start(path, "run", true), cut.err));
    EXPECT_TRUE(qe_out_done(cut.out, 0));
    EXPECT_FALSE(qe_out_done(cut.out, 1));
}

TEST(Folder, PlacesThatCannotBeWritten) {
    TempFolder folder;
    folder.write("file", "x");
    const struct { std::string path; qe_status expected; } bad[] = {
        {"", QE_E_PATH}, {std::string(5000, 'a'), QE_E_PATH}, {folder.file("file"), QE_E_STATE},
        {folder.file("none/m"), QE_E_IO}, {folder.file("file/m"), QE_E_IO}, {"/proc/qengine-model", QE_E_IO},
    };
    for (const auto &b : bad) {
        Job job;
        qe_status status = job.start(b.path, "run", false);
        EXPECT_TRUE(has_status(status, b.expected, job.err)) << b.path.substr(0, 40);
        EXPECT_NE(std::string(job.err.message), "");
    }
}

/* A limit on file sizes stands in for a full disk: both are found when room is reserved, before any work. */
TEST(Folder, NoRoom) {
    TempFolder folder;
    struct rlimit before;
    ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
    struct rlimit small = {2048, before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    Job job;
    qe_status status = job.start(folder.file("m"), "run", false);
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_TRUE(has_status(status, QE_E_IO, job.err));
    EXPECT_NE(std::string(job.err.where).find("model.safetensors"), std::string::npos) << job.err.where;
    qe_out_destroy(job.out);
    job.out = nullptr;
    EXPECT_NE(access(folder.file("m.partial").c_str(), F_OK), 0) << "nothing is left behind";
}

TEST(Folder, CommitWantsEveryTensor) {
    TempFolder folder;
    Job job;
    ASSERT_TRUE(is_ok(job.start(folder.file("m"), "run", false), job.err));
    ASSERT_EQ(job.put(0), QE_OK);
    EXPECT_TRUE(has_status(qe_out_commit(job.out, nullptr, &job.err), QE_E_STATE, job.err));
    EXPECT_NE(access(folder.file("m").c_str(), F_OK), 0);
    EXPECT_TRUE(has_status(qe_out_put(job.out, 1, 500, "xxxxxxxxxxxxxxxx", 16, &job.err), QE_E_ARGUMENT, job.err));
}

}  // namespace
