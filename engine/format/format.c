/* Opening: which reader takes a path or a source of bytes, and the lists every reader fills. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/os.h"
#include "format/store_internal.h"
#include "format/packed.h"

enum { PATH_LIMIT = 4095 };
static const char gguf_suffix[] = ".gguf", safetensors_suffix[] = ".safetensors";

void *qe_store_alloc(qe_store *store, uint64_t count, size_t bytes_each) {
    size_t bytes;
    if (!qe_check_array(count, bytes_each, &bytes) || bytes > SIZE_MAX - sizeof(qe_store_block)) return NULL;
    qe_store_block *block = calloc(1, sizeof *block + (bytes ? bytes : 1));
    if (!block) return NULL;
    block->next = store->blocks;
    store->blocks = block;
    return block + 1;
}

char *qe_store_text(qe_store *store, const char *text, size_t bytes) {
    char *copy = bytes < SIZE_MAX ? qe_store_alloc(store, bytes + 1, 1) : NULL;
    if (copy && bytes) memcpy(copy, text, bytes);
    return copy;
}

qe_status qe_store_nomem(const qe_store *store, qe_error *err) {
    return qe_error_at(err, QE_E_NOMEM, store->name, -1, "no memory for the contents of the file header");
}

/* ---- lists by name -------------------------------------------------------------------------------------------- */
typedef struct sort_item {
    const char *name;
    uint32_t index;
} sort_item;

static int by_name(const void *a, const void *b) {
    return strcmp(((const sort_item *)a)->name, ((const sort_item *)b)->name);
}

/* Sorts items and hands the order out; *twice is the index of the first name that is there twice, -1 if none. */
static uint32_t *sorted(qe_store *store, sort_item *items, int64_t count, int64_t *twice) {
    uint32_t *order = qe_store_alloc(store, (uint64_t)count, sizeof *order);
    if (!order) return NULL;
    qsort(items, (size_t)count, sizeof *items, by_name);
    *twice = -1;
    for (int64_t i = 0; i < count; i++) {
        order[i] = items[i].index;
        if (*twice < 0 && i && !strcmp(items[i - 1].name, items[i].name)) *twice = items[i].index;
    }
    return order;
}

qe_status qe_store_index_tensors(qe_store *store, qe_error *err) {
    sort_item *items = calloc((size_t)store->tensor_count + 1, sizeof *items);
    if (!items) return qe_store_nomem(store, err);
    for (int64_t i = 0; i < store->tensor_count; i++) items[i] = (sort_item){store->tensors[i].name, (uint32_t)i};
    int64_t twice;
    store->tensor_order = sorted(store, items, store->tensor_count, &twice);
    free(items);
    if (!store->tensor_order) return qe_store_nomem(store, err);
    char text[QE_TEXT_MAX];
    if (twice >= 0) {
        const char *name = store->tensors[twice].name;
        return qe_error_at(err, QE_E_DUPLICATE, store->files[store->tensors[twice].file].name, -1,
                           "tensor \"%s\" is there twice", qe_escape(name, strlen(name), text, sizeof text));
    }
    return QE_OK;
}

qe_status qe_store_index_metas(qe_store *store, qe_error *err) {
    sort_item *items = calloc((size_t)store->meta_count + 1, sizeof *items);
    if (!items) return qe_store_nomem(store, err);
    for (int64_t i = 0; i < store->meta_count; i++) items[i] = (sort_item){store->metas[i].key, (uint32_t)i};
    int64_t twice;
    store->meta_order = sorted(store, items, store->meta_count, &twice);
    free(items);
    if (!store->meta_order) return qe_store_nomem(store, err);
    char text[QE_TEXT_MAX];
    if (twice >= 0) {
        const char *key = store->metas[twice].key;
        return qe_error_at(err, QE_E_DUPLICATE, store->name, -1, "key \"%s\" is there twice",
                           qe_escape(key, strlen(key), text, sizeof text));
    }
    return QE_OK;
}

/* ---- what kind of file ---------------------------------------------------------------------------------------- */
static bool ends_with(const char *text, const char *suffix) {
    size_t a = strlen(text), b = strlen(suffix);
    return a >= b && !strcmp(text + a - b, suffix);
}

/* Known strangers, by their first bytes: the message says what it looks like. */
static const struct {
    const char *bytes;
    size_t count;
    const char *what;
} strangers[] = {
    {"PK\3\4", 4, "a ZIP archive (perhaps a PyTorch checkpoint)"},
    {"\x80\2", 2, "a Python pickle"},
    {"\x80\4", 2, "a Python pickle"},
    {"<!", 2, "an HTML page"},
    {"<html", 5, "an HTML page"},
    {"version https://git-lfs", 23, "a Git LFS pointer, not the file itself"},
    {"\x1f\x8b", 2, "a gzip file"},
    {"GGML", 4, "a GGML file older than GGUF"},
};

static const char *stranger(const char *head, size_t count) {
    for (size_t i = 0; i < sizeof strangers / sizeof strangers[0]; i++)
        if (count >= strangers[i].count && !memcmp(head, strangers[i].bytes, strangers[i].count))
            return strangers[i].what;
    return NULL;
}

/* The kind a file must be: by its name where that says so, else by its first bytes. */
static qe_status kind_of(const qe_reader *file, qe_store_kind *kind, qe_error *err) {
    char head[24] = {0};
    size_t count = file->size < sizeof head ? (size_t)file->size : sizeof head;
    QE_TRY(file->read_at(file->ctx, 0, head, count, err));
    bool gguf = count >= 4 && !memcmp(head, "GGUF", 4);
    bool safetensors = count >= 9 && head[8] == '{' && !gguf;
    const char *name = file->name ? file->name : "", *looks = stranger(head, count);
    if (ends_with(name, gguf_suffix))
        *kind = QE_STORE_GGUF;
    else if (ends_with(name, safetensors_suffix))
        *kind = QE_STORE_SAFETENSORS;
    else if (gguf)
        *kind = QE_STORE_GGUF;
    else if (safetensors)
        *kind = QE_STORE_SAFETENSORS;
    else if (count < 9 && !looks)
        return qe_error_at(err, QE_E_TRUNCATED, name, 0, "%zu bytes are too few for any model file", count);
    else
        return qe_error_at(err, QE_E_MAGIC, name, 0, "neither GGUF nor safetensors%s%s",
                           looks ? "; it looks like " : "", looks ? looks : "");
    if (*kind == QE_STORE_GGUF && !gguf && (looks || safetensors))
        return qe_error_at(err, QE_E_MAGIC, name, 0, "not GGUF; it looks like %s", looks ? looks : "safetensors");
    if (*kind == QE_STORE_SAFETENSORS && (gguf || (looks && !safetensors)))
        return qe_error_at(err, QE_E_MAGIC, name, 0, "not safetensors; it looks like %s", gguf ? "GGUF" : looks);
    return QE_OK;
}

/* ---- opening -------------------------------------------------------------------------------------------------- */
static void fill_limits(qe_model_limits *l) {
    const qe_model_limits defaults = {.header_bytes = 512u << 20,
                                      .config_bytes = 16u << 20,
                                      .string_bytes = 64u << 20,
                                      .tensors = 1000000,
                                      .keys = 100000,
                                      .array_items = 16777216,
                                      .shards = 10000,
                                      .layers = 4096,
                                      .vocab = 4194304,
                                      .context = 16777216};
    if (!l->header_bytes) l->header_bytes = defaults.header_bytes;
    if (!l->config_bytes) l->config_bytes = defaults.config_bytes;
    if (!l->string_bytes) l->string_bytes = defaults.string_bytes;
    if (!l->tensors || l->tensors > UINT32_MAX) l->tensors = defaults.tensors;
    if (!l->keys || l->keys > UINT32_MAX) l->keys = defaults.keys;
    if (!l->array_items) l->array_items = defaults.array_items;
    if (!l->shards || l->shards > INT32_MAX) l->shards = defaults.shards;
    if (!l->layers) l->layers = defaults.layers;
    if (!l->vocab) l->vocab = defaults.vocab;
    if (!l->context) l->context = defaults.context;
}

static qe_status store_create(const char *name, uint32_t flags, const qe_model_limits *limits, qe_store **out,
                              qe_error *err) {
    qe_store *store = calloc(1, sizeof *store);
    if (!store) return qe_error_at(err, QE_E_NOMEM, name, -1, "no memory to open a model");
    store->flags = flags;
    if (limits) store->limits = *limits;
    fill_limits(&store->limits);
    store->name = qe_store_text(store, name, strlen(name));
    if (!store->name) {
        qe_store_close(store);
        return qe_error_at(err, QE_E_NOMEM, name, -1, "no memory to open a model");
    }
    *out = store;
    return QE_OK;
}

/* Room for one file; the reader becomes the store's only on success. */
static qe_status adopt(qe_store *store, qe_reader reader, qe_error *err) {
    store->files = qe_store_alloc(store, 1, sizeof *store->files);
    if (!store->files) return qe_store_nomem(store, err);
    store->files[0] = reader;
    store->file_count = 1;
    return QE_OK;
}

static qe_status finish(qe_store *store, qe_error *err) {
    if (!store->meta_order) QE_TRY(qe_store_index_metas(store, err));
    if (!store->tensor_order) QE_TRY(qe_store_index_tensors(store, err));
    QE_TRY(qe_packed_cache_create(store, err));
    return qe_packed_bind(store, err);
}

static qe_status load_file(qe_store *store, qe_error *err) {
    QE_TRY(kind_of(&store->files[0], &store->kind, err));
    return store->kind == QE_STORE_GGUF ? qe_gguf_load(store, err) : qe_safetensors_load(store, 0, err);
}

static char *join(const char *folder, const char *name) {
    size_t a = strlen(folder), b = strlen(name);
    char *path = malloc(a + b + 1);
    if (!path) return NULL;
    memcpy(path, folder, a);
    memcpy(path + a, name, b + 1);
    return path;
}

qe_status qe_store_side_file(const qe_store *store, const char *name, size_t max_bytes, char **out, size_t *out_bytes,
                             qe_error *err) {
    *out = NULL;
    *out_bytes = 0;
    if (!store->folder) return QE_OK;
    char *path = join(store->folder, name);
    if (!path) return qe_store_nomem(store, err);
    qe_status status = qe_os_look(path) == QE_OS_NOTHING ? QE_OK : qe_store_slurp(path, max_bytes, out, out_bytes, err);
    free(path);
    return status;
}

/* config.json of the folder; *present tells whether there was one. */
static qe_status load_config(qe_store *store, bool *present, qe_error *err) {
    char *json;
    size_t bytes;
    QE_TRY(qe_store_side_file(store, "config.json", store->limits.config_bytes, &json, &bytes, err));
    *present = json != NULL;
    if (!json) return QE_OK;
    char *where = join(store->folder, "config.json");
    qe_status status = where ? qe_config_load(store, where, json, bytes, err) : qe_store_nomem(store, err);
    free(where);
    free(json);
    return status;
}

static qe_status load_folder(qe_store *store, qe_error *err) {
    store->kind = QE_STORE_SAFETENSORS;
    char *json;
    size_t bytes;
    size_t index_limit = store->limits.config_bytes > SIZE_MAX / 4 ? SIZE_MAX : (size_t)store->limits.config_bytes * 4;
    QE_TRY(qe_store_side_file(store, "model.safetensors.index.json", index_limit, &json, &bytes, err));
    if (json) {
        char *where = join(store->folder, "model.safetensors.index.json");
        qe_status status = where ? qe_index_load(store, where, json, bytes, err) : qe_store_nomem(store, err);
        free(where);
        free(json);
        return status;
    }
    char *path = join(store->folder, "model.safetensors");
    if (!path) return qe_store_nomem(store, err);
    qe_reader reader;
    qe_status status = qe_os_look(path) == QE_OS_NOTHING ? qe_error_at(err, QE_E_MISSING, store->name, -1,
                                                        "the folder holds neither model.safetensors nor "
                                                        "model.safetensors.index.json")
                                          : qe_reader_open(path, &reader, err);
    free(path);
    QE_TRY(status);
    status = adopt(store, reader, err);
    if (status) {
        qe_reader_close(&reader);
        return status;
    }
    return qe_safetensors_load(store, 0, err);
}

static qe_status load_path(qe_store *store, const char *path, qe_error *err) {
    size_t length = strlen(path);
    bool by_suffix = ends_with(path, gguf_suffix) || ends_with(path, safetensors_suffix), config = false;
    if (!by_suffix) {
        store->folder = qe_store_alloc(store, length + 2, 1);
        if (!store->folder) return qe_store_nomem(store, err);
        memcpy(store->folder, path, length);
        if (path[length - 1] != '/') store->folder[length] = '/';
        QE_TRY(load_config(store, &config, err));
        if (config) return load_folder(store, err);
    }
    qe_reader reader;
    QE_TRY(qe_reader_open(path, &reader, err));
    qe_status status = adopt(store, reader, err);
    if (status) {
        qe_reader_close(&reader);
        return status;
    }
    const char *slash = strrchr(path, '/');
    store->folder = slash ? qe_store_text(store, path, (size_t)(slash - path) + 1) : qe_store_text(store, "./", 2);
    if (!store->folder) return qe_store_nomem(store, err);
    QE_TRY(load_file(store, err));
    return store->kind == QE_STORE_SAFETENSORS ? load_config(store, &config, err) : QE_OK;
}

qe_status qe_store_open(const char *path, uint32_t flags, const qe_model_limits *limits, qe_store **out,
                        qe_error *err) {
    *out = NULL;
    size_t length = path ? strlen(path) : 0;
    if (!length) return qe_error_set(err, QE_E_PATH, "the path of the model is empty");
    if (length > PATH_LIMIT) return qe_error_set(err, QE_E_PATH, "path of more than %d bytes", PATH_LIMIT);
    qe_store *store;
    QE_TRY(store_create(path, flags, limits, &store, err));
    qe_status status = load_path(store, path, err);
    if (!status) status = finish(store, err);
    if (status) {
        qe_store_close(store);
        return status;
    }
    *out = store;
    return QE_OK;
}

static qe_status load_partial(qe_store *store, const char *path, const char *config_json, qe_error *err) {
    if (!config_json) return load_path(store, path, err);
    size_t length = strlen(path);
    store->folder = qe_store_alloc(store, length + 2, 1);
    if (!store->folder) return qe_store_nomem(store, err);
    memcpy(store->folder, path, length);
    store->folder[length] = '/';
    QE_TRY(qe_config_load(store, path, config_json, strlen(config_json), err));
    return load_folder(store, err);
}

qe_status qe_store_open_partial(const char *path, const char *config_json, bool (*only)(void *ctx, const char *module),
                                void *ctx, qe_store **out, qe_error *err) {
    qe_store *store;
    *out = NULL;
    QE_TRY(store_create(path, 0, NULL, &store, err));
    store->only = only;
    store->only_ctx = ctx;
    qe_status status = load_partial(store, path, config_json, err);
    if (!status) status = finish(store, err);
    if (status) qe_store_close(store);
    else *out = store;
    return status;
}

qe_status qe_store_open_reader(qe_reader reader, const char *config_json, size_t config_bytes, uint32_t flags,
                               const qe_model_limits *limits, qe_store **out, qe_error *err) {
    *out = NULL;
    qe_store *store = NULL;
    qe_status status = store_create(reader.name ? reader.name : "", flags, limits, &store, err);
    if (!status) status = adopt(store, reader, err);
    if (status) {
        qe_reader_close(&reader);
        qe_store_close(store);
        return status;
    }
    status = load_file(store, err);
    if (!status && config_json && store->kind == QE_STORE_SAFETENSORS)
        status = qe_config_load(store, "config.json", config_json, config_bytes, err);
    if (!status) status = finish(store, err);
    if (status) {
        qe_store_close(store);
        return status;
    }
    *out = store;
    return QE_OK;
}

void qe_store_close(qe_store *store) {
    if (!store) return;
    for (int64_t i = 0; i < store->file_count; i++) qe_reader_close(&store->files[i]);
    while (store->blocks) {
        qe_store_block *block = store->blocks;
        store->blocks = block->next;
        free(block);
    }
    free(store->header);
    qe_packed_release(store);
    free(store);
}

qe_store_kind qe_store_get_kind(const qe_store *store) {
    return store->kind;
}
const char *qe_store_name(const qe_store *store) {
    return store->name;
}
const qe_model_limits *qe_store_limits(const qe_store *store) {
    return &store->limits;
}
