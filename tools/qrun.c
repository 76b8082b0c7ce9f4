/* qrun -- run a model from the command line: text on stdout, everything else on stderr.
 * Exit codes: 0 done, 1 error, 2 usage, 130 interrupted. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <qengine/session.h>
#include <qengine/tokenizer.h>

enum { EXIT_ERROR = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };
enum { WINDOW_TOKENS = 512, WANTED_TOKENS = 64, DEFAULT_NEW_TOKENS = 128, PIECE_BYTES = 1 << 18 };

static const char usage[] =
    "usage: qrun -m MODEL [-p TEXT | -f FILE] [-n TOKENS] [options]\n"
    "       qrun -m MODEL --inspect | --perplexity FILE | --logits OUT -f FILE\n"
    "  -m MODEL          .gguf file, .safetensors file, or a Hugging Face folder\n"
    "  -p TEXT           the prompt; -f FILE reads it from a file\n"
    "  -n TOKENS         stop after so many new tokens (128)\n"
    "  --chat            the prompt is a user's message: wrap it in the model's chat template\n"
    "  --temp T          0: greedy (default); --top-k K, --top-p P, --min-p P, --seed S\n"
    "  --context TOKENS  longest text (the model's, at most 4096)\n"
    "  --threads T       default: physical cores;  --backend auto|cpu|cuda|ref\n"
    "  --quantize R      round float weights while loading: a scheme (w4a16-g128), a descriptor, or a recipe's file\n"
    "  --inspect         print tensors, schemes, bits per weight and bytes\n"
    "  --perplexity FILE perplexity of a text in windows of 512 tokens\n"
    "  --logits OUT      write the logits of every token of -f FILE as float32 [tokens, vocab]\n"
    "  --quiet           no progress and no speed on stderr;  --version\n";

typedef struct options {
    const char *model, *prompt, *file, *perplexity, *logits, *backend, *quantize;
    long        new_tokens, context, threads;
    bool        inspect, chat, quiet;
    qe_sampling sampling;
} options;

typedef struct program {
    options       o;
    qe_device    *device;
    qe_model     *model;
    qe_engine    *engine;
    qe_session   *session;
    qe_model_info info;
    qe_error      err;
} program;

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

static int ask_cancel(void *ctx) {
    (void)ctx;
    return interrupted;
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- errors --------------------------------------------------------------------------------------------------------- */
/* The one line of a failure. The path is the user's own; text from files is escaped in err.message already. */
static int report(const program *p, qe_status status) {
    if (status == QE_E_CANCELLED && interrupted) {
        fprintf(stderr, "qrun: interrupted\n");
        return EXIT_INTERRUPTED;
    }
    const char *where = p->err.where, *message = p->err.message[0] ? p->err.message : qe_status_text(status);
    if (where[0] && p->err.offset >= 0)
        fprintf(stderr, "qrun: %s at byte %lld: %s (%s)\n", where, (long long)p->err.offset, message, qe_status_name(status));
    else if (where[0]) fprintf(stderr, "qrun: %s: %s (%s)\n", where, message, qe_status_name(status));
    else fprintf(stderr, "qrun: %s (%s)\n", message, qe_status_name(status));
    return EXIT_ERROR;
}

static int usage_error(const char *what, const char *value) {
    fprintf(stderr, "qrun: %s%s%s; qrun --help lists the options\n", what, value ? " " : "", value ? value : "");
    return EXIT_USAGE;
}

/* ---- command line ----------------------------------------------------------------------------------------------------- */
static bool parse_long(const char *text, long low, long high, long *out) {
    char *end;
    long v = strtol(text, &end, 10);
    if (end == text || *end || v < low || v > high) return false;
    *out = v;
    return true;
}

static bool parse_float(const char *text, float low, float high, float *out) {
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !(v >= (double)low && v <= (double)high)) return false;
    *out = (float)v;
    return true;
}

typedef enum value_kind { TEXT, COUNT, FRACTION, TEMPERATURE, SEED, TOP_K, FLAG } value_kind;

static bool store(value_kind kind, void *to, const char *value) {
    long number;
    char *end;
    switch (kind) {
    case TEXT: *(const char **)to = value; return true;
    case COUNT: return parse_long(value, 1, 1 << 30, to);
    case FRACTION: return parse_float(value, 0, 1, to);
    case TEMPERATURE: return parse_float(value, 0, 1e6f, to);
    case SEED: *(uint64_t *)to = strtoull(value, &end, 10); return end != value && !*end;
    case TOP_K:
        if (!parse_long(value, 0, 1 << 30, &number)) return false;
        *(int32_t *)to = (int32_t)number;
        return true;
    case FLAG: break;
    }
    return false;
}

static int parse(int argc, char **argv, options *o) {
    const struct { const char *name; value_kind kind; void *to; } table[] = {
        {"-m", TEXT, &o->model}, {"-p", TEXT, &o->prompt}, {"-f", TEXT, &o->file}, {"-n", COUNT, &o->new_tokens},
        {"--perplexity", TEXT, &o->perplexity}, {"--logits", TEXT, &o->logits}, {"--quantize", TEXT, &o->quantize}, {"--backend", TEXT, &o->backend},
        {"--context", COUNT, &o->context}, {"--threads", COUNT, &o->threads},
        {"--temp", TEMPERATURE, &o->sampling.temperature}, {"--top-k", TOP_K, &o->sampling.top_k},
        {"--top-p", FRACTION, &o->sampling.top_p}, {"--min-p", FRACTION, &o->sampling.min_p},
        {"--seed", SEED, &o->sampling.seed}, {"--inspect", FLAG, &o->inspect}, {"--chat", FLAG, &o->chat},
        {"--quiet", FLAG, &o->quiet}};
    enum { ROWS = sizeof table / sizeof table[0] };
    for (int i = 1; i < argc; i++) {
        int row = 0;
        while (row < ROWS && strcmp(argv[i], table[row].name)) row++;
        if (row == ROWS) return usage_error("unknown option", argv[i]);
        if (table[row].kind == FLAG) {
            *(bool *)table[row].to = true;
            continue;
        }
        if (i + 1 == argc) return usage_error("a value is missing after", argv[i]);
        if (!store(table[row].kind, table[row].to, argv[++i])) {
            fprintf(stderr, "qrun: %s is no value for %s; qrun --help lists the options\n", argv[i], argv[i - 1]);
            return EXIT_USAGE;
        }
    }
    if (!o->model) return usage_error("-m MODEL is missing", NULL);
    if (o->inspect + !!o->perplexity + !!o->logits > 1) return usage_error("choose one of --inspect, --perplexity, --logits", NULL);
    if (o->logits && !o->file) return usage_error("--logits needs -f FILE", NULL);
    if (o->prompt && o->file) return usage_error("choose one of -p and -f", NULL);
    if (!o->inspect && !o->perplexity && !o->logits && !o->prompt && !o->file)
        return usage_error("-p TEXT is missing", NULL);
    return 0;
}

/* ---- opening ------------------------------------------------------------------------------------------------------------ */
static void write_log(void *ctx, qe_log_level level, const char *line) {
    (void)ctx;
    if (level == QE_LOG_WARNING) fprintf(stderr, "qrun: warning: %s\n", line);
}

static int on_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes) {
    const program *p = ctx;
    if (!p->o.quiet && isatty(2) && total_bytes)
        fprintf(stderr, "\rloading %3d%%%s", (int)(done_bytes * 100 / total_bytes), done_bytes == total_bytes ? "\r\x1b[K" : "");
    return interrupted;
}

static qe_status open_device(program *p) {
    static const char *const names[] = {"auto", "ref", "cpu", "cuda"};   /* the order of qe_backend */
    static const qe_log log = {NULL, write_log};
    qe_device_options o = {.struct_size = sizeof o, .threads = (int32_t)p->o.threads, .log = &log};
    for (int i = 0; p->o.backend && i < 4; i++) {
        if (!strcmp(p->o.backend, names[i])) o.backend = i;
    }
    return qe_device_create(&o, &p->device, &p->err);
}

static qe_status read_file(program *p, const char *path, char **out, size_t *out_bytes);

static qe_status open_all(program *p) {
    const qe_log log = {NULL, write_log};
    const qe_model_options model = {.struct_size = sizeof model, .flags = p->o.inspect ? QE_MODEL_INSPECT : 0, .log = &log};
    QE_TRY(qe_model_open(p->o.model, &model, &p->model, &p->err));
    QE_TRY(qe_model_get_info(p->model, &p->info, &p->err));
    if (p->o.inspect) return QE_OK;
    if (!qe_model_tokenizer(p->model))
        return qe_error_set(&p->err, QE_E_MISSING, "the model brings no tokenizer");
    QE_TRY(open_device(p));
    qe_engine_options engine = {.struct_size = sizeof engine, .context_tokens = p->o.context, .progress = on_progress,
                                .progress_ctx = p, .quantize = p->o.quantize};
    char *recipe = NULL;
    size_t bytes = 0;
    if (p->o.quantize && !access(p->o.quantize, R_OK)) QE_TRY(read_file(p, p->o.quantize, &recipe, &bytes));
    if (recipe) {
        recipe[bytes] = 0;
        engine.quantize = recipe;
    }
    qe_status status = qe_engine_create(p->device, p->model, &engine, &p->engine, &p->err);
    free(recipe);
    QE_TRY(status);
    return qe_session_create(p->engine, &p->session, &p->err);
}

static void close_all(program *p) {
    qe_session_destroy(p->session);
    qe_engine_destroy(p->engine);
    qe_device_destroy(p->device);
    qe_model_close(p->model);
}

/* ---- files and tokens -------------------------------------------------------------------------------------------------- */
static qe_status read_file(program *p, const char *path, char **out, size_t *out_bytes) {
    qe_reader reader;
    QE_TRY(qe_reader_open(path, &reader, &p->err));
    char *text = reader.size < SIZE_MAX ? malloc((size_t)reader.size + 1) : NULL;
    qe_status status = text ? reader.read_at(reader.ctx, 0, text, (size_t)reader.size, &p->err)
                            : qe_error_set(&p->err, QE_E_NOMEM, "no memory for a text of %llu bytes", (unsigned long long)reader.size);
    *out_bytes = (size_t)reader.size;
    qe_reader_close(&reader);
    if (status) free(text);
    else *out = text;
    return status;
}

typedef struct tokens {
    int32_t *ids;
    size_t   count;
} tokens;

static qe_status encode(program *p, const char *text, size_t bytes, bool chat, tokens *out) {
    const qe_tokenizer *t = qe_model_tokenizer(p->model);
    const qe_chat_message message = {"user", text, bytes};
    size_t count = 0;
    for (int pass = 0; pass < 2; pass++) {
        qe_status status = chat ? qe_chat_encode(t, &message, 1, NULL, out->ids, count, &count, &p->err)
                                : qe_tokenizer_encode(t, text, bytes, NULL, out->ids, count, &count, &p->err);
        QE_TRY(status);
        if (!pass && !(out->ids = malloc((count + 1) * sizeof *out->ids)))
            return qe_error_set(&p->err, QE_E_NOMEM, "no memory for %zu tokens", count);
    }
    out->count = count;
    return count ? QE_OK : qe_error_set(&p->err, QE_E_VALUE, "the text gives no tokens");
}

static qe_status encode_file(program *p, const char *path, tokens *out) {
    char *text = NULL;
    size_t bytes;
    QE_TRY(read_file(p, path, &text, &bytes));
    qe_status status = encode(p, text, bytes, false, out);
    free(text);
    return status;
}

static qe_status step(program *p, const int32_t *ids, int64_t n, float *logits) {
    const qe_step_options cancel = {.struct_size = sizeof cancel, .cancel = ask_cancel};
    qe_step_item item = {.session = p->session, .tokens = ids, .n_tokens = n, .want = logits ? QE_WANT_ALL : QE_WANT_LAST,
                         .logits = logits, .ld_logits = logits ? p->info.vocab : 0};
    return qe_engine_step(p->engine, &item, 1, &cancel, &p->err);
}

/* ---- generating ---------------------------------------------------------------------------------------------------------- */
static qe_status put_text(program *p, const char *text, size_t bytes) {
    if (fwrite(text, 1, bytes, stdout) == bytes && !fflush(stdout)) return QE_OK;
    return qe_error_set(&p->err, QE_E_IO, "cannot write to stdout");
}

static qe_status generate_tokens(program *p, qe_detokenizer *stream, char *piece, long *made) {
    const qe_tokenizer *t = qe_model_tokenizer(p->model);
    size_t bytes;
    for (*made = 0; *made < p->o.new_tokens; ++*made) {
        int32_t id;
        QE_TRY(qe_session_sample(p->session, &p->o.sampling, &id, NULL, &p->err));
        if (qe_tokenizer_is_end(t, id)) break;
        QE_TRY(qe_detokenizer_push(stream, id, piece, PIECE_BYTES, &bytes, &p->err));
        QE_TRY(put_text(p, piece, bytes));
        if (interrupted) return QE_E_CANCELLED;
        QE_TRY(step(p, &id, 1, NULL));
    }
    QE_TRY(qe_detokenizer_finish(stream, piece, PIECE_BYTES, &bytes, &p->err));
    return put_text(p, piece, bytes);
}

static qe_status generate(program *p, const tokens *prompt) {
    qe_engine_info info;
    qe_engine_get_info(p->engine, &info);
    if ((int64_t)prompt->count >= info.context_tokens)
        return qe_error_set(&p->err, QE_E_CAPACITY, "the prompt has %zu tokens, the context %lld", prompt->count,
                            (long long)info.context_tokens);
    long room = (long)(info.context_tokens - (int64_t)prompt->count), made = 0;
    if (p->o.new_tokens > room) p->o.new_tokens = room;
    double start = now_s();
    QE_TRY(step(p, prompt->ids, (int64_t)prompt->count, NULL));
    double middle = now_s();
    qe_detokenizer *stream = NULL;
    char *piece = malloc(PIECE_BYTES);
    qe_status status = piece ? qe_detokenizer_create(qe_model_tokenizer(p->model), 0, &stream, &p->err)
                             : qe_error_set(&p->err, QE_E_NOMEM, "no memory for text");
    if (!status) status = generate_tokens(p, stream, piece, &made);
    qe_detokenizer_destroy(stream);
    free(piece);
    double end = now_s();
    if (made) put_text(p, "\n", 1);
    if (!p->o.quiet && !status)
        fprintf(stderr, "prompt %zu tokens, %.1f tok/s; generated %ld tokens, %.1f tok/s; loaded in %.2f s\n", prompt->count,
                (double)prompt->count / (middle - start), made, made ? (double)made / (end - middle) : 0.0,
                1e-6 * (double)info.load_us);
    return status;
}

static qe_status run_prompt(program *p) {
    tokens prompt = {NULL, 0};
    char *text = NULL;
    size_t bytes = 0;
    qe_status status = QE_OK;
    if (p->o.file) status = read_file(p, p->o.file, &text, &bytes);
    if (!status) status = encode(p, text ? text : p->o.prompt, text ? bytes : strlen(p->o.prompt), p->o.chat, &prompt);
    if (!status) status = generate(p, &prompt);
    free(text);
    free(prompt.ids);
    return status;
}

/* ---- logits and perplexity ------------------------------------------------------------------------------------------------ */
static void show_progress(const program *p, const char *what, size_t done, size_t total, double start) {
    if (p->o.quiet || !isatty(2)) return;
    double left = (now_s() - start) * (double)(total - done) / (double)done;
    fprintf(stderr, "\r%s %zu of %zu tokens, %.0f s left\x1b[K%s", what, done, total, left, done == total ? "\r\x1b[K" : "");
}

typedef qe_status on_rows(program *p, const int32_t *ids, int64_t n, const float *logits, bool last, void *ctx);

/* Logits of `count` tokens that continue the session, in pieces. */
static qe_status walk(program *p, const int32_t *ids, size_t count, float *logits, on_rows *take, void *ctx) {
    for (size_t at = 0; at < count;) {
        size_t n = count - at < WANTED_TOKENS ? count - at : WANTED_TOKENS;
        QE_TRY(step(p, ids + at, (int64_t)n, logits));
        QE_TRY(take(p, ids + at, (int64_t)n, logits, at + n == count, ctx));
        at += n;
    }
    return QE_OK;
}

static qe_status write_rows(program *p, const int32_t *ids, int64_t n, const float *logits, bool last, void *ctx) {
    (void)ids, (void)last;
    size_t floats = (size_t)n * (size_t)p->info.vocab;
    if (fwrite(logits, sizeof *logits, floats, ctx) == floats) return QE_OK;
    return qe_error_set(&p->err, QE_E_IO, "cannot write %s", p->o.logits);
}

static float *logits_rows(program *p) {
    float *rows = malloc((size_t)WANTED_TOKENS * (size_t)p->info.vocab * sizeof *rows);
    if (!rows) qe_error_set(&p->err, QE_E_NOMEM, "no memory for logits");
    return rows;
}

/* Opened only when everything before it worked; removed again when the run fails, but for devices and pipes. */
static qe_status write_logits(program *p, const tokens *text, float *rows) {
    FILE *out = fopen(p->o.logits, "wb");
    struct stat made;
    if (!out) return qe_error_set(&p->err, QE_E_IO, "cannot create %s", p->o.logits);
    bool ours = !fstat(fileno(out), &made) && S_ISREG(made.st_mode);
    qe_status status = walk(p, text->ids, text->count, rows, write_rows, out);
    if (fclose(out) && !status) status = qe_error_set(&p->err, QE_E_IO, "cannot write %s", p->o.logits);
    if (status && ours) remove(p->o.logits);
    return status;
}

static qe_status run_logits(program *p) {
    tokens text = {NULL, 0};
    float *rows = logits_rows(p);
    qe_engine_info info;
    qe_engine_get_info(p->engine, &info);
    qe_status status = rows ? encode_file(p, p->o.file, &text) : QE_E_NOMEM;
    if (!status && (int64_t)text.count > info.context_tokens)
        status = qe_error_set(&p->err, QE_E_CAPACITY, "the text has %zu tokens, the context %lld", text.count,
                              (long long)info.context_tokens);
    if (!status) status = write_logits(p, &text, rows);
    if (!status && !p->o.quiet) fprintf(stderr, "%zu tokens, %d logits each\n", text.count, p->info.vocab);
    free(text.ids);
    free(rows);
    return status;
}

typedef struct perplexity {
    double        nll;
    size_t        scored;
} perplexity;

/* Row i predicts token i + 1; ids goes on after the rows but for the last ones of a window. */
static qe_status score_rows(program *p, const int32_t *ids, int64_t n, const float *logits, bool last, void *ctx) {
    perplexity *sum = ctx;
    const int64_t vocab = p->info.vocab;
    for (int64_t i = 0; i < n - last; i++) {
        const float *row = logits + i * vocab;
        double top = (double)row[0], total = 0;
        for (int64_t v = 1; v < vocab; v++) top = (double)row[v] > top ? (double)row[v] : top;
        for (int64_t v = 0; v < vocab; v++) total += exp((double)row[v] - top);
        sum->nll += top + log(total) - (double)row[ids[i + 1]];
        sum->scored++;
    }
    return QE_OK;
}

/* Where the tokenizer put BOS before the text, every window begins with it: models trained so are lost without it. As
 * qe_quality_measure() does, so that both give one figure. */
static qe_status score_windows(program *p, const tokens *text, float *rows, perplexity *sum) {
    double start = now_s();
    qe_engine_info info;
    qe_engine_get_info(p->engine, &info);
    int32_t ids[WINDOW_TOKENS];
    size_t window = info.context_tokens < WINDOW_TOKENS ? (size_t)info.context_tokens : WINDOW_TOKENS;
    bool bos = window > 1 && text->count && text->ids[0] == qe_tokenizer_special(qe_model_tokenizer(p->model), QE_SPECIAL_BOS);
    for (size_t at = 0, n; at < text->count; at += n) {
        size_t first = bos && at ? 1 : 0;
        n = text->count - at < window - first ? text->count - at : window - first;
        ids[0] = text->ids[0];
        memcpy(ids + first, text->ids + at, n * sizeof *ids);
        QE_TRY(qe_session_rewind(p->session, 0, &p->err));
        QE_TRY(walk(p, ids, first + n, rows, score_rows, sum));
        show_progress(p, "perplexity:", at + n, text->count, start);
    }
    return sum->scored ? QE_OK : qe_error_set(&p->err, QE_E_VALUE, "the text has a single token");
}

static qe_status run_perplexity(program *p) {
    tokens text = {NULL, 0};
    perplexity sum = {0, 0};
    float *rows = logits_rows(p);
    qe_status status = rows ? encode_file(p, p->o.perplexity, &text) : QE_E_NOMEM;
    if (!status) status = score_windows(p, &text, rows, &sum);
    char line[96];
    if (!status) {
        snprintf(line, sizeof line, "perplexity %.4f over %zu tokens\n", exp(sum.nll / (double)sum.scored), sum.scored);
        status = put_text(p, line, strlen(line));
    }
    free(text.ids);
    free(rows);
    return status;
}

/* ---- inspecting ------------------------------------------------------------------------------------------------------------ */
/* The quantizer's report as it is stored, one object a line. */
static void print_report(const char *json) {
    char line[512];
    if (!json) return;
    printf("quantization report\n");
    for (const char *at = json; *at;) {
        const char *end = strstr(at, "},{");
        size_t bytes = end ? (size_t)(end - at) + 2 : strlen(at);
        for (const char *from = at; from < at + bytes;) {
            size_t piece = (size_t)(at + bytes - from) < 128 ? (size_t)(at + bytes - from) : 128;
            for (size_t i = 0; i < piece; i++) line[i] = (unsigned char)from[i] < 0x20 || from[i] == 0x7f ? '?' : from[i];
            fwrite(line, 1, piece, stdout);
            from += piece;
        }
        printf("\n");
        at += bytes;
    }
}

static qe_status run_inspect(program *p) {
    const qe_model_info *m = &p->info;
    char called[300], architecture[200];
    printf("%s  %s  %s  %.1f M parameters  %.1f MB  %.3f bits per weight\n", m->format,
           qe_escape(m->architecture, strlen(m->architecture), architecture, sizeof architecture),
           qe_escape(m->name, strlen(m->name), called, sizeof called),
           1e-6 * (double)m->parameters, 1e-6 * (double)m->bytes, m->bits_per_weight);
    printf("%-48s %-8s %-28s %20s %8s %12s\n", "tensor", "type", "scheme", "shape", "bits/w", "bytes");
    for (int64_t i = 0; i < qe_model_tensor_count(p->model); i++) {
        qe_tensor_info t;
        char scheme[96] = "-", shape[160] = "", name[200];
        size_t used = 0;
        QE_TRY(qe_model_get_tensor(p->model, i, &t, &p->err));
        if (t.quant.code != QE_CODE_NONE) qe_quant_name(&t.quant, scheme, sizeof scheme);
        for (int32_t d = 0; d < t.rank; d++)
            used += (size_t)snprintf(shape + used, sizeof shape - used, "%s%lld", d ? " x " : "", (long long)t.dims[d]);
        printf("%-48s %-8s %-28s %20s %8.4f %12llu\n", qe_escape(t.name, strlen(t.name), name, sizeof name), t.type, scheme,
               shape, t.bits_per_weight, (unsigned long long)t.bytes);
    }
    print_report(qe_model_note(p->model, "qengine.report"));
    return fflush(stdout) ? qe_error_set(&p->err, QE_E_IO, "cannot write to stdout") : QE_OK;
}

/* ---- main ------------------------------------------------------------------------------------------------------------------- */
static qe_status run(program *p) {
    QE_TRY(open_all(p));
    if (p->o.inspect) return run_inspect(p);
    if (p->o.perplexity) return run_perplexity(p);
    if (p->o.logits) return run_logits(p);
    return run_prompt(p);
}

static bool known_backend(const char *name) {
    return !name || !strcmp(name, "auto") || !strcmp(name, "cpu") || !strcmp(name, "cuda") || !strcmp(name, "ref");
}

int main(int argc, char **argv) {
    static program p;
    p.o.new_tokens = DEFAULT_NEW_TOKENS;
    p.o.sampling.struct_size = sizeof p.o.sampling;
    p.err.offset = -1;
    if (argc == 2 && !strcmp(argv[1], "--help")) return fputs(usage, stdout) < 0;
    if (argc == 2 && !strcmp(argv[1], "--version")) return printf("qrun %s\n", qe_version()) < 0;
    int bad = parse(argc, argv, &p.o);
    if (bad) return bad;
    if (!known_backend(p.o.backend)) return usage_error("no such backend:", p.o.backend);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = SA_RESETHAND;          /* a second Ctrl-C ends at once */
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    qe_status status = run(&p);
    int code = status ? report(&p, status) : 0;
    close_all(&p);
    return code;
}
