/* What qquant holds at its peak: no more than the plan states beforehand, beside the program's own, and the plan does not grow
 * with the number of layers. Watched from outside, as anonymous memory. */
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <qengine/num.h>

#include "program_rig.h"
#include "quantize_rig.h"

using namespace quantize_rig;
using qe_test::TempFolder;

namespace {

enum { HIDDEN = 512, FFN = 1536, VOCAB = 1024 };
const int64_t layer_elements = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN;

void write_file(const std::string &path, const std::string &bytes) {
    std::ofstream out(path, std::ios::binary);
    out << bytes;
    ASSERT_TRUE(out.good()) << path;
}

std::string tensors_of(int layers, std::string *data) {
    std::string json;
    uint32_t state = 1;
    auto add = [&](const std::string &name, int64_t n, int64_t k) {
        size_t from = data->size();
        for (int64_t i = 0; i < n * k; i++) {
            state = state * 1664525u + 1013904223u;
            float v = k == 1 ? 1.0f : ((float)(state >> 8) * 0x1p-24f - 0.5f) * 0.07f;
            uint16_t half = qe_f32_to_f16(v);
            data->append((const char *)&half, 2);
        }
        json += (json.empty() ? "\"" : ",\"") + name + "\":{\"dtype\":\"F16\",\"shape\":[" + std::to_string(n) +
                (k == 1 ? "" : "," + std::to_string(k)) + "],\"data_offsets\":[" + std::to_string(from) + "," +
                std::to_string(data->size()) + "]}";
    };
    add("model.embed_tokens.weight", VOCAB, HIDDEN);
    add("lm_head.weight", VOCAB, HIDDEN);
    add("model.norm.weight", HIDDEN, 1);
    for (int i = 0; i < layers; i++) {
        std::string p = "model.layers." + std::to_string(i) + ".";
        for (const char *name : {"q", "k", "v", "o"}) add(p + "self_attn." + name + "_proj.weight", HIDDEN, HIDDEN);
        for (const char *name : {"gate", "up"}) add(p + "mlp." + name + "_proj.weight", FFN, HIDDEN);
        add(p + "mlp.down_proj.weight", HIDDEN, FFN);
        for (const char *name : {"input", "post_attention"}) add(p + name + "_layernorm.weight", HIDDEN, 1);
    }
    return "{" + json + "}";
}

void write_model(const std::string &path, int layers) {
    std::string data, json = tensors_of(layers, &data), bytes(8, '\0');
    json.append((8 - json.size() % 8) % 8, ' ');
    uint64_t size = json.size();
    memcpy(&bytes[0], &size, 8);
    ASSERT_EQ(mkdir(path.c_str(), 0700), 0);
    write_file(path + "/model.safetensors", bytes + json + data);
    write_file(path + "/config.json",
                        R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "head_dim": 64,
                            "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 8, "hidden_act": "silu",
                            "rms_norm_eps": 1e-5, "vocab_size": 1024, "max_position_embeddings": 512, "rope_theta": 10000.0,
                            "tie_word_embeddings": false, "num_hidden_layers": )" + std::to_string(layers) + "}");
    for (const char *name : {"/tokenizer.json", "/tokenizer_config.json"})
        write_file(path + name, qe_test::read_file(tiny + name));
}

int64_t anonymous(pid_t pid) {
    char line[256];
    int64_t kib = 0;
    FILE *f = fopen(("/proc/" + std::to_string(pid) + "/status").c_str(), "r");
    while (f && fgets(line, sizeof line, f)) sscanf(line, "RssAnon: %" SCNd64, &kib);
    if (f) fclose(f);
    return kib << 10;
}

/* Peak over the program's own: what it holds to say its version. */
int64_t peak_of(const std::string &log, const std::vector<std::string> &args) {
    pid_t pid = program_rig::start(QE_TEST_BIN "/qquant", args, log, log + ".err");
    int64_t peak = 0;
    int status = 0;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        peak = std::max(peak, anonymous(pid));
        usleep(1000);
    }
    EXPECT_EQ(status, 0) << qe_test::read_file(log + ".err");
    return peak;
}

/* "about 161 MB of memory" of a dry run. */
int64_t stated(std::vector<std::string> args, const std::string &log) {
    args.push_back("--dry-run");
    int status = 0;
    waitpid(program_rig::start(QE_TEST_BIN "/qquant", args, log, log + ".err"), &status, 0);
    const std::string text = qe_test::read_file(log);
    const size_t at = text.find("about ");
    EXPECT_TRUE(status == 0 && at != std::string::npos) << text << qe_test::read_file(log + ".err");
    return at == std::string::npos ? 0 : atoll(text.c_str() + at + 6) * 1000000;
}

TEST(Memory, NoMoreThanStatedHoweverDeepTheModel) {
    TempFolder folder;
    const int64_t own = 12 << 20, layer = 4 * layer_elements;
    write_file(folder.file("calib.txt"), qe_test::read_file(QE_TEST_DATA "/calib.txt"));
    write_model(folder.file("shallow"), 2);
    write_model(folder.file("deep"), 6);
    for (const char *method : {"rtn", "awq+rtn", "gptq"}) {
        int64_t peak[2], plan[2];
        for (int deep = 0; deep < 2; deep++) {
            std::vector<std::string> args = {"--model", folder.file(deep ? "deep" : "shallow"), "--scheme", "w4a16-g128", "--method",
                                             method, "--out", folder.file(std::string(method) + std::to_string(deep)), "--threads", "2"};
            if (strcmp(method, "rtn"))
                for (const std::string &arg : {std::string("--calib-sequences"), std::string("2"), std::string("--calib"), folder.file("calib.txt")})
                    args.push_back(arg);
            plan[deep] = stated(args, folder.file("plan"));
            args.push_back("--quiet");
            peak[deep] = peak_of(folder.file("log"), args);
        }
        printf("%-8s peak %" PRId64 " KiB of 2 layers, %" PRId64 " KiB of 6, stated %" PRId64 " KiB\n", method, peak[0] >> 10,
               peak[1] >> 10, plan[1] >> 10);
        EXPECT_GT(peak[0], 4 * HIDDEN * FFN) << "nothing was watched";
        EXPECT_LE(plan[1], plan[0] + layer / 4) << method;
        EXPECT_LE(peak[0], plan[0] + own) << method;
        EXPECT_LE(peak[1], plan[1] + own) << method;
    }
}

}  // namespace
