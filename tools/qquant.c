/* qquant -- quantize a model from the command line. Progress and messages on stderr, the report on stdout.
 * Exit codes: 0 done, 1 error, 2 usage, 130 interrupted (what is finished can be resumed). */
#define _POSIX_C_SOURCE 200809L
#include <malloc.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <qengine/quantize.h>
#include <qengine/recipe.h>
#include <qengine/tokenizer.h>

enum { EXIT_ERROR = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

static const char usage[] =
    "usage: qquant --model DIR --scheme S --out PATH [--method M] [--calib FILE] [options]\n"
    "       qquant --model DIR --scheme S --dry-run | --explain    sizes and memory, or each linear's fate; nothing is written\n"
    "       qquant --model DIR --budget B [--scheme S,S,...] --calib FILE --out PATH [--recipe-out FILE]      mixed precision\n"
    "       qquant --compare REFERENCE --model CANDIDATE --text FILE [--quantize R]   perplexity, KL, agreement\n"
    "       qquant --list                                          schemes, methods, formats\n"
    "  --model DIR       a Hugging Face folder with FP16, BF16 or FP32 weights, or a GGUF file, dequantized first (methods with a\n"
    "                    text need a folder: make one by --scheme f16 --format qengine)\n"
    "  --scheme S        a name of the list, a descriptor (int4:g64:f16:z=u8, @a8 for int8 inputs, @a1 for signs), or a recipe's file\n"
    "  --method M        rtn, gptq, gptq-order, adaround, ...; awq+, smoothquant+, rotate+ before it\n"
    "  --calib FILE      UTF-8 text for methods that need one; --calib-tokens 512, --calib-sequences 128\n"
    "  --format F        compressed-tensors, gptq, gguf, qengine (default: the first that holds the scheme)\n"
    "  --budget B        4.5: mean bits of a weight; 120M: bytes of all tensors (K, M, G: powers of 1000); 8ms (us, ms, s): one\n"
    "                    token through the linears of all layers, measured here with --threads. Chooses among the\n"
    "                    schemes of --scheme by what each costs the model's output on the text\n"
    "  --recipe-out FILE the recipe chosen under --budget; given to --scheme it makes the same bytes again\n"
    "  --text FILE       held-out text: the result is compared with its source before it is put in place, for the report\n"
    "  --text-tokens N   how many of its tokens --compare predicts (all)\n"
    "  --resume          go on where an earlier run of the same command stopped\n"
    "  --shard-bytes N   largest safetensors file (4 GiB);  --seed S;  --threads T\n"
    "  --quiet           no progress, no table;  --version\n";

typedef struct options {
    const char *model, *scheme, *method, *calib, *format, *out, *compare, *text, *quantize, *budget, *recipe_out;
    long        tokens, text_tokens, sequences, threads, shard, seed;
    double      budget_bits, budget_bytes, budget_seconds;
    bool        resume, dry_run, explain, list, quiet;
} options;

typedef struct program {
    options    o;
    qe_device *device;
    qe_model  *model;
    char      *recipe, *calibration, *text;
    size_t     calibration_bytes, text_bytes;
    char       choice_of[256];
    double     start_s, first_done, chosen_s;
    bool       shown;
    qe_error   err;
} program;

static volatile sig_atomic_t interrupted;
static void on_interrupt(int number) {
    (void)number;
    interrupted = 1;
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- errors ------------------------------------------------------------------------------------------------------------ */
static int report(program *p, qe_status status) {
    const char *where = p->err.where, *message = p->err.message[0] ? p->err.message : qe_status_text(status);
    if (p->shown) fprintf(stderr, "\r\x1b[K");
    if (status == QE_E_CANCELLED && interrupted) {
        fprintf(stderr, "qquant: interrupted; the same command with --resume goes on\n");
        return EXIT_INTERRUPTED;
    }
    if (where[0] && p->err.offset >= 0)
        fprintf(stderr, "qquant: %s at byte %lld: %s (%s)\n", where, (long long)p->err.offset, message, qe_status_name(status));
    else if (where[0]) fprintf(stderr, "qquant: %s: %s (%s)\n", where, message, qe_status_name(status));
    else fprintf(stderr, "qquant: %s (%s)\n", message, qe_status_name(status));
    return EXIT_ERROR;
}

static int usage_error(const char *what, const char *value) {
    fprintf(stderr, "qquant: %s%s%s; qquant --help lists the options\n", what, value ? " " : "", value ? value : "");
    return EXIT_USAGE;
}

/* ---- command line ------------------------------------------------------------------------------------------------------ */
typedef enum value_kind { TEXT, COUNT, FLAG } value_kind;

static bool store(value_kind kind, void *to, const char *value) {
    char *end;
    if (kind == TEXT) *(const char **)to = value;
    if (kind == TEXT) return true;
    *(long *)to = strtol(value, &end, 10);
    return end != value && !*end && *(long *)to >= 1;
}

/* "4.5": bits of a weight; with K, M or G: bytes; with us, ms or s: time. */
static bool read_budget(options *o) {
    static const char units[] = "KMG";
    char *end;
    double value = strtod(o->budget, &end), factor = 1000;
    const char *unit = *end ? strchr(units, *end) : NULL;
    double scale = !strcmp(end, "us") ? 1e-6 : !strcmp(end, "ms") ? 1e-3 : !strcmp(end, "s") ? 1 : 0;
    if (end == o->budget || !(value > 0) || value > 1e12) return false;
    if (scale > 0) o->budget_seconds = value * scale;
    if (scale > 0) return o->budget_seconds <= 1e6;
    if (*end && (!unit || end[1])) return false;
    for (const char *u = units; unit && u < unit; u++) factor *= 1000;
    if (unit) o->budget_bytes = value * factor;
    else o->budget_bits = value;
    return unit || value <= 64;
}

static int parse(int argc, char **argv, options *o) {
    const struct { const char *name; value_kind kind; void *to; } table[] = {
        {"--model", TEXT, &o->model}, {"--scheme", TEXT, &o->scheme}, {"--method", TEXT, &o->method}, {"--calib", TEXT, &o->calib},
        {"--format", TEXT, &o->format}, {"--out", TEXT, &o->out}, {"--compare", TEXT, &o->compare}, {"--text", TEXT, &o->text},
        {"--quantize", TEXT, &o->quantize}, {"--budget", TEXT, &o->budget}, {"--recipe-out", TEXT, &o->recipe_out}, {"--calib-tokens", COUNT, &o->tokens},
        {"--text-tokens", COUNT, &o->text_tokens},
        {"--calib-sequences", COUNT, &o->sequences}, {"--threads", COUNT, &o->threads}, {"--shard-bytes", COUNT, &o->shard},
        {"--seed", COUNT, &o->seed}, {"--resume", FLAG, &o->resume},
        {"--dry-run", FLAG, &o->dry_run}, {"--explain", FLAG, &o->explain}, {"--list", FLAG, &o->list}, {"--quiet", FLAG, &o->quiet}};
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
        if (!store(table[row].kind, table[row].to, argv[++i])) return usage_error("no value for this option:", argv[i]);
    }
    if (o->list) return 0;
    if (!o->model) return usage_error("--model DIR is missing", NULL);
    if (o->text_tokens && !o->compare) return usage_error("--text-tokens needs --compare", NULL);
    if (o->compare) return o->text ? 0 : usage_error("--compare needs --text FILE", NULL);
    if (o->budget && !read_budget(o)) return usage_error("a budget is bits of a weight (4.5, at most 64), bytes (120M) or time (8ms), not", o->budget);
    if (o->budget && !o->calib) return usage_error("--budget needs --calib FILE", NULL);
    if (o->recipe_out && !o->budget) return usage_error("--recipe-out needs --budget", NULL);
    if (!o->scheme && !o->budget) return usage_error("--scheme is missing; --list shows them", NULL);
    if (!o->out && !o->dry_run && !o->explain) return usage_error("--out PATH is missing", NULL);
    return 0;
}

/* ---- lists ------------------------------------------------------------------------------------------------------------- */
static int print_lists(void) {
    static const struct { const char *name, *what; } methods[] = {
#define QE_X(name, value, text, needs, what) {text, what},
        QE_METHOD_LIST(QE_X)
#undef QE_X
        {"gptq-order", "GPTQ in the order of falling importance; the order is stored"},
        {"awq+...", "activation-aware column scales first, folded into the layer before"},
        {"smoothquant+...", "column scales that move outliers from inputs to weights, likewise"},
        {"rotate+...", "Hadamard rotation of inputs and weights (qengine form)"},
    };
    const qe_scheme *s;
    const char *name, *what;
    printf("schemes\n");
    for (int i = 0; (s = qe_scheme_at(i)); i++) printf("  %-18s %-32s %s\n", s->name, s->weight, s->what);
    printf("methods\n");
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) printf("  %-18s %s\n", methods[i].name, methods[i].what);
    printf("formats\n");
    for (int i = 0; (name = qe_checkpoint_format(i, &what)); i++) printf("  %-18s %s\n", name, what);
    return fflush(stdout) ? EXIT_ERROR : 0;
}

/* ---- files ------------------------------------------------------------------------------------------------------------- */
static qe_status read_file(program *p, const char *path, char **out, size_t *bytes) {
    qe_reader reader;
    QE_TRY(qe_reader_open(path, &reader, &p->err));
    char *text = malloc((size_t)reader.size + 1);
    qe_status status = text ? reader.read_at(reader.ctx, 0, text, (size_t)reader.size, &p->err)
                            : qe_error_set(&p->err, QE_E_NOMEM, "no memory for a text of %llu bytes", (unsigned long long)reader.size);
    *bytes = (size_t)reader.size;
    qe_reader_close(&reader);
    if (status) free(text);
    else text[*bytes] = 0, *out = text;
    return status;
}

static qe_status open_device(program *p) {
    const qe_device_options o = {.struct_size = sizeof o, .threads = (int32_t)p->o.threads};
    return qe_device_create(&o, &p->device, &p->err);
}

/* ---- quantizing -------------------------------------------------------------------------------------------------------- */
static void on_layer(void *ctx, const qe_quantize_layer *l) {
    program *p = ctx;
    if (p->o.quiet) return;
    if (p->shown) fprintf(stderr, "\r\x1b[K");
    p->shown = false;
    if (l->index == 1) printf("%-44s %-28s %-16s %8s %9s %10s %10s\n", "linear", "scheme", "method", "bits/w", "SQNR dB", "max error", "out cos");
    printf("%-44s %-28s %-16s %8.4f %9.2f %10.3g %10.6f%s\n", l->module, l->scheme, l->method, l->bits_per_weight, l->sqnr_db,
           l->max_error, l->output_cosine, l->resumed ? "  (resumed)" : "");
    fflush(stdout);
}

static int on_progress(void *ctx, double done, double total) {
    program *p = ctx;
    if (!p->o.quiet && isatty(2) && total > 0) {
        if (p->first_done < 0) p->first_done = done;
        double fresh = done - p->first_done, left = fresh > 0 ? (now_s() - p->start_s) * (total - done) / fresh : 0;
        fprintf(stderr, "\r%3d%%  %.0f s left\x1b[K", (int)(100 * done / total), left);
        p->shown = true;
    }
    return interrupted;
}

/* A line for each input of each layer: what it got, and what the candidates lose. */
static void on_choice(void *ctx, const qe_quantize_choice *c) {
    program *p = ctx;
    if (p->shown) fprintf(stderr, "\r\x1b[K");
    p->shown = false;
    if (c->picked) p->chosen_s += c->seconds;
    if (!p->o.explain) return;
    if (strcmp(p->choice_of, c->module)) printf("%s%s\n", p->choice_of[0] ? "" : "choices, each with its bytes, the KL it adds and, under a budget of time, its microseconds\n", c->module);
    snprintf(p->choice_of, sizeof p->choice_of, "%s", c->module);
    if (c->bytes < 0) printf("    %-30s not held by the format\n", c->scheme);
    else printf("  %s %-30s %12lld %12.3e", c->picked ? "*" : " ", c->scheme, (long long)c->bytes, c->loss);
    if (c->bytes >= 0 && c->seconds > 0) printf(" %10.2f", 1e6 * c->seconds);
    if (c->bytes >= 0) printf("\n");
}

static void on_chosen(void *ctx, const char *recipe) {
    program *p = ctx;
    free(p->recipe);
    size_t bytes = strlen(recipe) + 1;
    p->recipe = malloc(bytes);
    if (p->recipe) memcpy(p->recipe, recipe, bytes);
}

/* The recipe of a budget, kept for the run that follows. */
static qe_status save_recipe(program *p) {
    if (!p->recipe) return qe_error_set(&p->err, QE_E_NOMEM, "no memory for a recipe");
    if (!p->o.recipe_out) return QE_OK;
    FILE *file = fopen(p->o.recipe_out, "w");
    bool good = file && fputs(p->recipe, file) >= 0;
    if (file && fclose(file)) good = false;
    return good ? QE_OK : qe_error_at(&p->err, QE_E_IO, p->o.recipe_out, -1, "cannot be written");
}

static void on_quality(void *ctx, const qe_quality *q) {
    program *p = ctx;
    if (p->shown) fprintf(stderr, "\r\x1b[K");
    p->shown = false;
    printf("tokens %lld  perplexity %.4f, reference %.4f (%+.2f %%)  KL mean %.5f, p99 %.5f, max %.4f  top-1 %.2f %%\n",
           (long long)q->tokens, q->perplexity, q->perplexity_reference, 100 * (q->perplexity / q->perplexity_reference - 1),
           q->kl_mean, q->kl_p99, q->kl_max, 100 * q->top1_agreement);
}

static qe_quantize_options options_of(program *p) {
    return (qe_quantize_options){.struct_size = sizeof(qe_quantize_options),
                                 .flags = p->o.resume ? QE_QUANTIZE_RESUME : 0,
                                 .recipe = p->recipe ? p->recipe : p->o.scheme,
                                 .method = p->o.method,
                                 .format = p->o.format,
                                 .out = p->o.out,
                                 .calibration = p->calibration,
                                 .calibration_bytes = p->calibration_bytes,
                                 .sequence_tokens = (int32_t)p->o.tokens,
                                 .sequences = (int32_t)p->o.sequences,
                                 .shard_bytes = (uint64_t)p->o.shard,
                                 .seed = (uint64_t)p->o.seed,
                                 .layer = on_layer,
                                 .progress = on_progress,
                                 .ctx = p,
                                 .budget_bits = p->o.budget_bits,
                                 .budget_bytes = (uint64_t)p->o.budget_bytes,
                                 .budget_seconds = p->o.budget_seconds,
                                 .choice = on_choice,
                                 .chosen = on_chosen,
                                 .quality_text = p->text,
                                 .quality_bytes = p->text_bytes,
                                 .quality = on_quality};
}

static void print_plan(const qe_quantize_plan *plan) {
    printf("%lld linears with %.1f M weights at %.4f bits, %lld tensors kept; %.1f MB written, about %.0f MB of memory",
           (long long)plan->linears, 1e-6 * (double)plan->weights, plan->bits_per_weight, (long long)plan->kept,
           1e-6 * (double)plan->file_bytes, 1e-6 * (double)plan->memory_bytes);
    if (plan->calibration_tokens) printf(", at most %lld tokens of calibration", (long long)plan->calibration_tokens);
    printf("\n");
}

static qe_status quantize(program *p) {
    const qe_model_options model = {.struct_size = sizeof model};
    size_t bytes;
    QE_TRY(qe_model_open(p->o.model, &model, &p->model, &p->err));
    if (p->o.scheme && !p->o.budget && !access(p->o.scheme, R_OK)) QE_TRY(read_file(p, p->o.scheme, &p->recipe, &bytes));
    if (p->o.calib) QE_TRY(read_file(p, p->o.calib, &p->calibration, &p->calibration_bytes));
    if (p->o.text) QE_TRY(read_file(p, p->o.text, &p->text, &p->text_bytes));
    QE_TRY(open_device(p));
    qe_quantize_options o = options_of(p);
    qe_quantize_plan plan;
    o.flags |= QE_QUANTIZE_PLAN_ONLY;
    if (!p->o.explain) o.layer = NULL;
    p->start_s = now_s();
    p->first_done = -1;
    QE_TRY(qe_model_quantize(p->device, p->model, &o, &plan, &p->err));
    if (p->o.budget) {
        QE_TRY(save_recipe(p));
        o.recipe = p->recipe;
        o.method = NULL;
        o.budget_bits = 0;
        o.budget_bytes = 0;
        o.budget_seconds = 0;
    }
    if (!p->o.quiet) print_plan(&plan);
    if (!p->o.quiet && p->chosen_s > 0) printf("%.4f ms for one token's linears, measured\n", 1e3 * p->chosen_s);
    fflush(stdout);
    if (p->o.dry_run || p->o.explain) return QE_OK;
    o.flags &= ~(uint32_t)QE_QUANTIZE_PLAN_ONLY;
    o.layer = on_layer;
    p->start_s = now_s();
    p->first_done = -1;
    QE_TRY(qe_model_quantize(p->device, p->model, &o, &plan, &p->err));
    if (p->shown) fprintf(stderr, "\r\x1b[K");
    if (!p->o.quiet) printf("%s written in %.1f s\n", p->o.out, now_s() - p->start_s);
    return QE_OK;
}

/* ---- comparing --------------------------------------------------------------------------------------------------------- */
typedef struct side {
    qe_model  *model;
    qe_engine *engine;
} side;

static qe_status open_side(program *p, const char *path, const char *recipe, side *s) {
    const qe_model_options model = {.struct_size = sizeof model};
    QE_TRY(qe_model_open(path, &model, &s->model, &p->err));
    const qe_engine_options engine = {.struct_size = sizeof engine, .quantize = recipe};
    return qe_engine_create(p->device, s->model, &engine, &s->engine, &p->err);
}

static int on_tokens(void *ctx, uint64_t done, uint64_t total) {
    return on_progress(ctx, (double)done, (double)total);
}

static qe_status compare_ids(program *p, const side *a, const side *b, const char *text, size_t bytes) {
    const qe_tokenizer *t = qe_model_tokenizer(a->model);
    size_t count = 0;
    qe_quality q;
    if (!t) return qe_error_set(&p->err, QE_E_MISSING, "the reference brings no tokenizer");
    QE_TRY(qe_tokenizer_encode(t, text, bytes, NULL, NULL, 0, &count, &p->err));
    int32_t *ids = malloc((count + 1) * sizeof *ids);
    if (!ids) return qe_error_set(&p->err, QE_E_NOMEM, "no memory for %zu tokens", count);
    qe_status status = qe_tokenizer_encode(t, text, bytes, NULL, ids, count, &count, &p->err);
    if (p->o.text_tokens && (size_t)p->o.text_tokens + 1 < count) count = (size_t)p->o.text_tokens + 1; /* the first is given */
    p->start_s = now_s();
    p->first_done = -1;
    if (!status) status = qe_quality_measure(a->engine, b->engine, ids, (int64_t)count, 0, on_tokens, p, &q, &p->err);
    free(ids);
    if (status) return status;
    on_quality(p, &q);
    return QE_OK;
}

static qe_status compare(program *p) {
    side a = {NULL, NULL}, b = {NULL, NULL};
    char *text = NULL, *recipe = NULL;
    size_t bytes, recipe_bytes;
    qe_status status = open_device(p);
    if (!status) status = read_file(p, p->o.text, &text, &bytes);
    if (!status && p->o.quantize && !access(p->o.quantize, R_OK)) status = read_file(p, p->o.quantize, &recipe, &recipe_bytes);
    if (!status) status = open_side(p, p->o.compare, NULL, &a);
    if (!status) status = open_side(p, p->o.model, recipe ? recipe : p->o.quantize, &b);
    if (!status) status = compare_ids(p, &a, &b, text, bytes);
    qe_engine_destroy(a.engine);
    qe_engine_destroy(b.engine);
    qe_model_close(a.model);
    qe_model_close(b.model);
    free(recipe);
    free(text);
    return status;
}

int main(int argc, char **argv) {
    static program p;
#ifdef M_MMAP_THRESHOLD      /* glibc */
    /* Matrices go back to the system when they are freed. By itself glibc would keep blocks up to 32 MiB in its heaps once it
     * has seen one, where layers of other sizes between them leave holes: some 15 MiB more with each layer. */
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
    p.err.offset = -1;
    if (argc == 2 && !strcmp(argv[1], "--help")) return fputs(usage, stdout) < 0;
    if (argc == 2 && !strcmp(argv[1], "--version")) return printf("qquant %s\n", qe_version()) < 0;
    int bad = parse(argc, argv, &p.o);
    if (bad) return bad;
    if (p.o.list) return print_lists();
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = SA_RESETHAND;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    qe_status status = p.o.compare ? compare(&p) : quantize(&p);
    int code = status ? report(&p, status) : 0;
    qe_model_close(p.model);
    qe_device_destroy(p.device);
    free(p.recipe);
    free(p.calibration);
    free(p.text);
    return code;
}
