// Quantizing the bundled model in tests: one call, and the logits of what came out.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <dirent.h>

#include <qengine/recipe.h>
#include <qengine/tokenizer.h>

#include "support.h"

namespace quantize_rig {

struct Closer {
    void operator()(qe_device *d) const { qe_device_destroy(d); }
    void operator()(qe_model *m) const { qe_model_close(m); }
    void operator()(qe_engine *e) const { EXPECT_EQ(qe_engine_destroy(e), QE_OK); }
};
template <typename T> using Owned = std::unique_ptr<T, Closer>;

inline const std::string tiny = QE_TEST_DATA "/tiny-llama";

inline Owned<qe_device> device(int32_t threads = 2) {
    qe_error err{};
    qe_device_options d = {};
    d.struct_size = sizeof d;
    d.threads = threads;
    d.backend = QE_BACKEND_CPU;
    qe_device *out = nullptr;
    EXPECT_TRUE(qe_test::is_ok(qe_device_create(&d, &out, &err), err));
    return Owned<qe_device>(out);
}
inline Owned<qe_model> model(const std::string &path) {
    qe_error err{};
    qe_model *out = nullptr;
    EXPECT_TRUE(qe_test::is_ok(qe_model_open(path.c_str(), nullptr, &out, &err), err)) << path;
    return Owned<qe_model>(out);
}
inline Owned<qe_engine> engine(qe_device *d, qe_model *m, const char *recipe = nullptr) {
    qe_error err{};
    qe_engine_options o = {};
    o.struct_size = sizeof o;
    o.quantize = recipe;
    qe_engine *out = nullptr;
    EXPECT_TRUE(qe_test::is_ok(qe_engine_create(d, m, &o, &out, &err), err)) << (recipe ? recipe : "");
    return Owned<qe_engine>(out);
}
inline std::vector<int32_t> ids_of(qe_model *m, const std::string &text, size_t most) {
    qe_error err{};
    size_t count = 0;
    EXPECT_TRUE(qe_test::is_ok(qe_tokenizer_encode(qe_model_tokenizer(m), text.data(), text.size(), nullptr, nullptr, 0, &count, &err), err));
    std::vector<int32_t> ids(count);
    EXPECT_TRUE(qe_test::is_ok(qe_tokenizer_encode(qe_model_tokenizer(m), text.data(), text.size(), nullptr, ids.data(), count, &count, &err), err));
    if (ids.size() > most) ids.resize(most);
    return ids;
}
inline std::vector<float> logits(qe_engine *e, const std::vector<int32_t> &ids, int64_t vocab) {
    qe_error err{};
    qe_session *s = nullptr;
    EXPECT_TRUE(qe_test::is_ok(qe_session_create(e, &s, &err), err));
    std::vector<float> out(ids.size() * (size_t)vocab);
    qe_step_item item = {s, ids.data(), (int64_t)ids.size(), QE_WANT_ALL, 0, out.data(), vocab};
    EXPECT_TRUE(qe_test::is_ok(qe_engine_step(e, &item, 1, nullptr, &err), err));
    qe_session_destroy(s);
    return out;
}

struct Job {
    std::string recipe, method, format, out, calibration;
    uint32_t flags = 0;
    uint64_t shard = 0;
    int64_t stop_after = -1;             // progress calls before the run is stopped
    int64_t calls = 0, layers = 0, resumed = 0;
    qe_quantize_plan plan{};
    qe_error err{};

    qe_status go(qe_device *d, qe_model *m) {
        qe_quantize_options o = {};
        o.struct_size = sizeof o;
        o.flags = flags;
        o.recipe = recipe.c_str();
        o.method = method.empty() ? nullptr : method.c_str();
        o.format = format.empty() ? nullptr : format.c_str();
        o.out = out.c_str();
        o.calibration = calibration.empty() ? nullptr : calibration.data();
        o.calibration_bytes = calibration.size();
        o.shard_bytes = shard;
        o.layer = [](void *ctx, const qe_quantize_layer *l) {
            ((Job *)ctx)->layers++;
            ((Job *)ctx)->resumed += l->resumed;
        };
        o.progress = [](void *ctx, double, double) {
            Job *r = (Job *)ctx;
            return (int)(r->calls++ == r->stop_after);
        };
        o.ctx = this;
        calls = layers = resumed = 0;
        return qe_model_quantize(d, m, &o, &plan, &err);
    }
};

// Every file of a folder (or a single file), by name.
inline std::map<std::string, std::string> contents(const std::string &path) {
    std::map<std::string, std::string> out;
    DIR *folder = opendir(path.c_str());
    if (!folder) return {{"", qe_test::read_file(path)}};
    while (dirent *e = readdir(folder))
        if (e->d_name[0] != '.') out[e->d_name] = qe_test::read_file(path + "/" + e->d_name);
    closedir(folder);
    return out;
}

}  // namespace quantize_rig
