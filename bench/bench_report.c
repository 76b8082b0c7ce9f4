/* bench_report.c -- results as a table, JSON lines, CSV and Markdown, all from one list of fields. */
#define _GNU_SOURCE
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

typedef enum field_type { TEXT, WIDE, INT, REAL } field_type;
enum { IN_GEMM = 1, IN_MODEL = 2, IN_ROOF = 4, IN_ALL = 7 };
typedef struct field {
    const char *name;
    field_type  type;
    size_t      at;
    int         kinds, width;           /* width in the table on stdout; 0: not shown there */
} field;

#define AT(member) offsetof(bench_result, member)
static const field fields[] = {
    {"backend", TEXT, AT(backend), IN_ALL, 8},        {"impl", TEXT, AT(impl), IN_GEMM | IN_ROOF, 26},
    {"impl", TEXT, AT(impl), IN_MODEL, 54},           {"scheme", TEXT, AT(scheme), IN_ALL, 11},
    {"m", WIDE, AT(m), IN_GEMM, 6},
    {"n", WIDE, AT(n), IN_GEMM, 7},                   {"k", WIDE, AT(k), IN_GEMM, 7},
    {"group", INT, AT(group), IN_GEMM, 6},            {"threads", INT, AT(threads), IN_ALL, 8},
    {"us_median", REAL, AT(us_median), IN_GEMM, 11},  {"us_p10", REAL, AT(us_p10), IN_GEMM, 0},
    {"us_p90", REAL, AT(us_p90), IN_GEMM, 0},         {"tops", REAL, AT(tops), IN_GEMM | IN_ROOF, 9},
    {"gbps", REAL, AT(gbps), IN_GEMM | IN_ROOF, 9},   {"roof_pct", REAL, AT(roof_pct), IN_GEMM, 9},
    {"baseline", TEXT, AT(baseline), IN_GEMM, 14},    {"baseline_us", REAL, AT(baseline_us), IN_GEMM, 12},
    {"speedup", REAL, AT(speedup), IN_GEMM, 8},       {"max_err", REAL, AT(max_err), IN_GEMM, 10},
    {"batch", INT, AT(batch), IN_MODEL, 6},           {"prompt", INT, AT(prompt), IN_MODEL, 7},
    {"gen", INT, AT(gen), IN_MODEL, 5},               {"prefill_tok_s", REAL, AT(prefill_tok_s), IN_MODEL, 14},
    {"decode_tok_s", REAL, AT(decode_tok_s), IN_MODEL, 13}, {"load_ms", REAL, AT(load_ms), IN_MODEL, 9},
    {"peak_rss_bytes", REAL, AT(peak_rss_bytes), IN_MODEL, 15},
    {"bits_per_weight", REAL, AT(bits_per_weight), IN_MODEL, 16}, {"device", TEXT, AT(device), IN_ALL, 0},
};
enum { FIELDS = sizeof fields / sizeof fields[0] };

bench_result bench_result_new(const char *kind) {
    bench_result r;
    memset(&r, 0, sizeof r);
    r.kind = kind;
    double *reals[] = {&r.us_median, &r.us_p10, &r.us_p90, &r.tops, &r.gbps, &r.roof_pct, &r.baseline_us, &r.speedup,
                       &r.max_err, &r.prefill_tok_s, &r.decode_tok_s, &r.load_ms, &r.peak_rss_bytes, &r.bits_per_weight};
    for (size_t i = 0; i < sizeof reals / sizeof reals[0]; i++) *reals[i] = NAN;
    return r;
}

static int kind_bit(const char *kind) {
    return strcmp(kind, "gemm") == 0 ? IN_GEMM : strcmp(kind, "model") == 0 ? IN_MODEL : IN_ROOF;
}

/* A value as text; `none` for what does not apply. */
static void show(const bench_result *r, const field *f, const char *none, int digits, char *out, size_t out_bytes) {
    const char *at = (const char *)r + f->at;
    double      real;
    int64_t     wide;
    int32_t     narrow;
    switch (f->type) {
    case TEXT: snprintf(out, out_bytes, "%s", *at ? at : none); break;
    case WIDE: memcpy(&wide, at, sizeof wide), snprintf(out, out_bytes, "%lld", (long long)wide); break;
    case INT: memcpy(&narrow, at, sizeof narrow), snprintf(out, out_bytes, "%d", narrow); break;
    case REAL:
        memcpy(&real, at, sizeof real);
        if (isfinite(real))
            snprintf(out, out_bytes, "%.*g", real >= 1000 && digits < 9 ? 9 : digits, real >= 1000 && digits < 9 ? rint(real) : real);
        else
            snprintf(out, out_bytes, "%s", none);
    }
}

static void json_text(FILE *file, const char *text) {
    fputc('"', file);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') fputc('\\', file);
        if ((unsigned char)*text >= 0x20) fputc(*text, file);
    }
    fputc('"', file);
}

static void write_json(const bench_report *report, const bench_result *r) {
    char text[128];
    fprintf(report->json, "{\"kind\":\"%s\"", r->kind);
    for (int i = 0; i < FIELDS; i++) {
        if (!(fields[i].kinds & kind_bit(r->kind))) continue;
        show(r, &fields[i], fields[i].type == REAL ? "null" : "", 9, text, sizeof text);
        fprintf(report->json, ",\"%s\":", fields[i].name);
        if (fields[i].type == TEXT)
            json_text(report->json, text);
        else
            fputs(text, report->json);
    }
    fputs(",\"commit\":", report->json);
    json_text(report->json, report->options->commit);
    fputs("}\n", report->json);
    fflush(report->json);
}

static void write_csv(bench_report *report, const bench_result *r, bool header) {
    char text[128];
    if (header) {
        fputs("kind", report->csv);
        for (int i = 0; i < FIELDS; i++)
            if (fields[i].kinds & kind_bit(r->kind)) fprintf(report->csv, ",%s", fields[i].name);
        fputs(",commit\n", report->csv);
    }
    fputs(r->kind, report->csv);
    for (int i = 0; i < FIELDS; i++) {
        if (!(fields[i].kinds & kind_bit(r->kind))) continue;
        show(r, &fields[i], "", 9, text, sizeof text);
        fprintf(report->csv, strchr(text, ',') ? ",\"%s\"" : ",%s", text);
    }
    fprintf(report->csv, ",%s\n", report->options->commit);
}

static void write_columns(FILE *file, const bench_result *r, bool header, bool markdown) {
    char text[128];
    for (int pass = header ? 0 : 2; pass < 3; pass++) {
        if (pass == 1 && !markdown) continue;
        for (int i = 0; i < FIELDS; i++) {
            if (!(fields[i].kinds & kind_bit(r->kind)) || !fields[i].width) continue;
            if (pass == 0) snprintf(text, sizeof text, "%s", fields[i].name);
            if (pass == 1) snprintf(text, sizeof text, fields[i].type == TEXT ? "---" : "---:");
            if (pass == 2) show(r, &fields[i], "-", 4, text, sizeof text);
            if (markdown)
                fprintf(file, "| %s ", text);
            else
                fprintf(file, fields[i].type == TEXT ? "%-*s " : "%*s ", fields[i].width, text);
        }
        fputs(markdown ? "|\n" : "\n", file);
    }
    fflush(file);
}

/* Where rows go besides the table. */
typedef struct output { const char *path; FILE **file; } output;
static void outputs(bench_report *report, output out[3]) {
    out[0] = (output){report->options->json, &report->json};
    out[1] = (output){report->options->csv, &report->csv};
    out[2] = (output){report->options->md, &report->md};
}

static int cannot_write(const char *path) {
    fprintf(stderr, "qbench: cannot write %s\n", path);
    return BENCH_ERROR;
}

/* Files are opened with the first row, so that a run that fails before leaves none and what an older run wrote stays. */
static void open_files(bench_report *report) {
    output out[3];
    outputs(report, out);
    for (int i = 0; i < 3; i++)
        if (out[i].path && !(*out[i].file = fopen(out[i].path, "w"))) report->failed = cannot_write(out[i].path);
}

void bench_report_add(bench_report *report, const bench_result *r) {
    bool header = !report->last_kind || strcmp(report->last_kind, r->kind) != 0;
    if (!report->rows) open_files(report);
    bench_progress("%s", "");
    write_columns(stdout, r, header, false);
    if (report->json) write_json(report, r);
    if (report->csv) write_csv(report, r, header);
    if (report->md) write_columns(report->md, r, header, true);
    report->last_kind = r->kind;
    report->rows++;
}

/* Whether a file can be written is asked before the work. */
static bool can_write(const char *path) {
    bool  there = access(path, F_OK) == 0;
    FILE *file = fopen(path, "a");
    if (!file) return false;
    fclose(file);
    if (!there) remove(path);
    return true;
}

int bench_report_open(bench_report *report, const bench_options *options) {
    output out[3];
    memset(report, 0, sizeof *report);
    report->options = options;
    outputs(report, out);
    for (int i = 0; i < 3; i++)
        if (out[i].path && !can_write(out[i].path)) return cannot_write(out[i].path);
    return BENCH_OK;
}

int bench_report_close(bench_report *report) {
    output out[3];
    bool   written = true;
    outputs(report, out);
    for (int i = 0; i < 3; i++)
        if (*out[i].file && (ferror(*out[i].file) | fclose(*out[i].file))) written = false;
    if (!written) fprintf(stderr, "qbench: a results file could not be written\n");
    if (fflush(stdout) || ferror(stdout)) written = cannot_write("to stdout") == BENCH_OK;
    return written && !report->failed ? BENCH_OK : BENCH_ERROR;
}

void bench_progress(const char *format, ...) {
    if (!isatty(STDERR_FILENO)) return;
    va_list args;
    va_start(args, format);
    fputs("\r\033[K", stderr);
    vfprintf(stderr, format, args);
    va_end(args);
    fflush(stderr);
}

int bench_fail(const qe_error *err) {
    bench_progress("%s", "");
    fprintf(stderr, "qbench: %s%s%s\n", err->where, err->where[0] ? ": " : "", err->message);
    return BENCH_ERROR;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_quantile(double *values, int count, double q) {
    qsort(values, (size_t)count, sizeof *values, compare);
    double at = q * (count - 1);
    int    low = (int)at, high = low + 1 < count ? low + 1 : low;
    return values[low] + (values[high] - values[low]) * (at - low);
}

double bench_now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}
