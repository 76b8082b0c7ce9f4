/* qbench.c -- measures the library: roofs of the machine, single linears, whole models. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "bench_commit.h"   /* made by the build */

static const char usage[] =
    "usage: qbench roofline [--threads T]\n"
    "       qbench gemm  [--backend auto|cpu|cuda|ref] [--scheme LIST] [--shape NAME|NxK] [--m LIST] [--group G]\n"
    "                    [--baseline openblas-f32|cublaslt-f16|none] [--threads T] [--rounds R] [--check] [--warm]\n"
    "                    [--experts E]   one grouped call of E experts, m tokens each on average, against E calls\n"
    "       qbench tune  --cache FILE [--backend auto|cpu|cuda] [--scheme LIST] [--shape NAME|NxK] [--m LIST] [--group G]\n"
    "                    [--threads T] [--rounds R] [--warm]   the fastest of the plans that give the same bits, into FILE\n"
    "       qbench model -m PATH [--prompt 512] [--gen 128] [--batch LIST] [--threads T] [--backend ...]\n"
    "                    [--quantize RECIPE]\n"
    "       qbench [gemm ...] --explain [--gpu a100|l40s|h100|h200|b200]   why each layout and kernel was chosen or refused,\n"
    "                    here, or on a GPU that need not be here\n"
    "gemm, model and --explain take --cache FILE: the plans that tune found\n"
    "results: a table on stdout; --json FILE (one object per line), --csv FILE, --md FILE; --commit TEXT is\n"
    "         recorded (the commit that was built)\n";

static int bad(const char *what, const char *value) {
    fprintf(stderr, "qbench: %s \"%s\"\n%s", what, value, usage);
    return BENCH_USAGE;
}

static bool number(const char *text, long long lo, long long hi, long long *out) {
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 10);
    return end != text && *end == 0 && !errno && *out >= lo && *out <= hi;
}

static bool list(const char *text, long long hi, int64_t *out, int32_t *count) {
    *count = 0;
    while (*text) {
        char   item[32];
        size_t bytes = strcspn(text, ",");
        long long value;
        if (bytes == 0 || bytes >= sizeof item || *count == BENCH_LIST) return false;
        memcpy(item, text, bytes);
        item[bytes] = 0;
        if (!number(item, 1, hi, &value)) return false;
        out[(*count)++] = value;
        text += bytes + (text[bytes] == ',');
    }
    return *count > 0;
}

typedef struct option {
    const char  *name;
    const char **text;       /* exactly one of text, value, flag, or a list by name */
    int32_t     *value;
    long long    lo, hi;
    bool        *flag;
} option;

static int parse_one(const option *options, size_t count, int argc, char **argv, int *at, bench_options *o) {
    const char *name = argv[*at];
    int64_t     batches[BENCH_LIST];
    long long   value;
    bool        is_m = strcmp(name, "--m") == 0, is_batch = strcmp(name, "--batch") == 0;
    for (size_t i = 0; i < count; i++)
        if (options[i].flag && strcmp(name, options[i].name) == 0) return *options[i].flag = true, BENCH_OK;
    bool known = is_m || is_batch;
    for (size_t i = 0; i < count; i++) known = known || strcmp(name, options[i].name) == 0;
    if (!known) return bad("unknown argument", name);
    if (*at + 1 >= argc) return bad("no value for", name);
    const char *text = argv[++*at];
    if (is_m) return list(text, 1 << 20, o->m, &o->m_count) ? BENCH_OK : bad("--m is a list of numbers, not", text);
    if (is_batch) {
        if (!list(text, 1024, batches, &o->batch_count)) return bad("--batch is a list of numbers, not", text);
        for (int32_t i = 0; i < o->batch_count; i++) o->batch[i] = (int32_t)batches[i];
        return BENCH_OK;
    }
    for (size_t i = 0; i < count; i++) {
        if (strcmp(name, options[i].name) != 0) continue;
        if (options[i].text) return *options[i].text = text, BENCH_OK;
        if (!number(text, options[i].lo, options[i].hi, &value)) return bad("out of range", text);
        *options[i].value = (int32_t)value;
    }
    return BENCH_OK;
}

static bool one_of(const char *text, const char *const *names) {
    for (; *names; names++)
        if (strcmp(text, *names) == 0) return true;
    return false;
}

static int parse(int argc, char **argv, bench_options *o) {
    const option options[] = {
        {.name = "--backend", .text = &o->backend},   {.name = "--scheme", .text = &o->scheme},
        {.name = "--shape", .text = &o->shape},       {.name = "--baseline", .text = &o->baseline},
        {.name = "--json", .text = &o->json},         {.name = "--csv", .text = &o->csv},
        {.name = "--md", .text = &o->md},             {.name = "--commit", .text = &o->commit},
        {.name = "--gpu", .text = &o->gpu},           {.name = "--quantize", .text = &o->quantize},
        {.name = "--cache", .text = &o->cache},
        {.name = "-m", .text = &o->model},            {.name = "--check", .flag = &o->check},
        {.name = "--warm", .flag = &o->warm},         {.name = "--explain", .flag = &o->explain},
        {.name = "--group", .value = &o->group, .lo = 16, .hi = 65536},
        {.name = "--experts", .value = &o->experts, .lo = 1, .hi = 1024},
        {.name = "--threads", .value = &o->threads, .lo = 1, .hi = 1024},
        {.name = "--rounds", .value = &o->rounds, .lo = 1, .hi = 201},
        {.name = "--prompt", .value = &o->prompt, .lo = 1, .hi = 1 << 24},
        {.name = "--gen", .value = &o->gen, .lo = 0, .hi = 1 << 24},
    };
    static const char *const modes[] = {"roofline", "gemm", "tune", "model", NULL};
    static const char *const backends[] = {"auto", "cpu", "cuda", "ref", NULL};
    static const char *const baselines[] = {"openblas-f32", "cublaslt-f16", "none", NULL};
    int code;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-') {
            if (o->mode || !one_of(argv[i], modes)) return bad("unknown argument", argv[i]);
            o->mode = argv[i];
            continue;
        }
        code = parse_one(options, sizeof options / sizeof options[0], argc, argv, &i, o);
        if (code) return code;
    }
    if (!o->mode && o->explain) o->mode = "gemm";
    if (!o->mode) return fputs(usage, stderr), BENCH_USAGE;
    if (!one_of(o->backend, backends)) return bad("unknown backend", o->backend);
    if (!one_of(o->baseline, baselines)) return bad("unknown baseline", o->baseline);
    code = bench_schemes_parse(o);
    if (code) return code;
    if (strcmp(o->mode, "model") == 0 && !o->model) return bad("the model mode needs", "-m PATH");
    o->tune = strcmp(o->mode, "tune") == 0;
    if (o->tune && !o->cache) return bad("the tune mode needs", "--cache FILE");
    if (o->tune && (o->explain || o->check || strcmp(o->baseline, "none") != 0))
        return bad("the tune mode only tunes:", "no --explain, --check and --baseline");
    if (o->tune && o->experts) return bad("the tune mode only tunes:", "no --experts");
    if (strcmp(o->baseline, "openblas-f32") == 0 && !bench_openblas_core()) return bad("built without", o->baseline);
    if (o->gpu && !o->explain) return bad("--gpu goes with --explain:", o->gpu);
    if (strcmp(o->baseline, "cublaslt-f16") == 0) {
        if (strcmp(o->backend, "auto") == 0) o->backend = "cuda";
        if (strcmp(o->backend, "cuda") != 0) return bad("the baseline cublaslt-f16 does not go with --backend", o->backend);
    }
    return BENCH_OK;
}

static void warn(void *ctx, qe_log_level level, const char *line) {
    (void)ctx;
    if (level == QE_LOG_WARNING) fprintf(stderr, "qbench: %s\n", line);
}

int bench_device(const bench_options *options, qe_device **out) {
    static const struct { const char *name; int32_t backend; } names[] = {
        {"auto", QE_BACKEND_AUTO}, {"ref", QE_BACKEND_REF}, {"cpu", QE_BACKEND_CPU}, {"cuda", QE_BACKEND_CUDA}};
    static const qe_log warnings = {.write = warn};
    qe_device_options o = {.struct_size = sizeof o, .threads = options->threads,
                           .tuning = options->cache, .log = &warnings};
    qe_error          err;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(options->backend, names[i].name) == 0) o.backend = names[i].backend;
    const char *missing = strcmp(options->baseline, "cublaslt-f16") == 0 ? bench_cublaslt_missing() : NULL;
    if (missing) {
        fprintf(stderr, "qbench: no baseline cublaslt-f16: %s\n", missing);
        return BENCH_NO_BACKEND;
    }
    qe_status status = qe_device_create(&o, out, &err);
    if (!status) return BENCH_OK;
    bench_fail(&err);
    return status == QE_E_DEVICE || status == QE_E_UNSUPPORTED ? BENCH_NO_BACKEND : BENCH_ERROR;
}

int main(int argc, char **argv) {
    bench_options o = {.backend = "auto", .scheme = "w8a8,w4a8,q4_k", .shape = "4096x4096", .baseline = "none",
                       .commit = BENCH_COMMIT, .m = {1, 16, 512}, .m_count = 3, .batch = {1}, .batch_count = 1,
                       .group = 128, .rounds = 9, .prompt = 512, .gen = 128};
    bench_report report;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return fputs(usage, stdout), 0;
    int code = parse(argc, argv, &o);
    if (code) return code;
    if (strcmp(o.baseline, "openblas-f32") == 0) bench_openblas_setup(argv);
    code = bench_report_open(&report, &o);
    if (code) return code;
    if (strcmp(o.mode, "roofline") == 0) code = bench_roofline(&o, &report);
    if (strcmp(o.mode, "gemm") == 0 || o.tune) code = bench_gemm(&o, &report);
    if (strcmp(o.mode, "model") == 0) code = bench_model(&o, &report);
    int closed = bench_report_close(&report);
    return code ? code : closed;
}
