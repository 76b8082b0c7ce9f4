/* model.safetensors.index.json: which shard holds which tensor. Shards are plain file names beside the index; every
 * shard must hold exactly the tensors the index says. */
#include <stdlib.h>
#include <string.h>

#include "base/os.h"
#include "format/store_internal.h"

static const char suffix[] = ".safetensors";

static qe_status index_fail(const char *where, qe_status status, const char *name, const char *what, qe_error *err) {
    char text[QE_TEXT_MAX];
    return qe_error_at(err, status, where, -1, "\"%s\": %s", qe_escape(name, strlen(name), text, sizeof text), what);
}

static qe_status check_shard_name(const char *where, const json_t *value, qe_error *err) {
    if (!json_is_string(value))
        return qe_error_at(err, QE_E_TYPE, where, -1, "weight_map holds a value that is no string");
    const char *name = json_string_value(value);
    size_t bytes = strlen(name), tail = sizeof suffix - 1;
    if (!bytes || strpbrk(name, "/\\:") || !strcmp(name, ".") || !strcmp(name, "..") || bytes > 255)
        return index_fail(where, QE_E_PATH, name, "a shard must be a plain file name beside the index", err);
    if (bytes <= tail || strcmp(name + bytes - tail, suffix))
        return index_fail(where, QE_E_UNSUPPORTED, name, "a shard must be a .safetensors file", err);
    return QE_OK;
}

/* Distinct shard names, each mapped to its number. */
static qe_status list_shards(const qe_store *store, const char *where, json_t *map, json_t *shards, qe_error *err) {
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value) {
        QE_TRY(check_shard_name(where, value, err));
        const char *name = json_string_value(value);
        if (json_object_get(shards, name)) continue;
        if (json_object_size(shards) >= store->limits.shards)
            return qe_error_at(err, QE_E_LIMIT, where, -1, "more shards than the limit of %llu",
                               (unsigned long long)store->limits.shards);
        if (json_object_set_new(shards, name, json_integer((json_int_t)json_object_size(shards))))
            return qe_store_nomem(store, err);
    }
    return QE_OK;
}

static qe_status open_shard(qe_store *store, const char *where, const char *name, qe_reader *out, qe_error *err) {
    size_t a = strlen(store->folder), b = strlen(name);
    char *path = malloc(a + b + 1);
    if (!path) return qe_store_nomem(store, err);
    memcpy(path, store->folder, a);
    memcpy(path + a, name, b + 1);
    qe_os_kind kind = qe_os_look(path);
    qe_status status;
    if (kind == QE_OS_NOTHING)
        status = index_fail(where, QE_E_MISSING, name, "the shard is not there", err);
    else if (kind == QE_OS_LINK && !(store->flags & QE_MODEL_FOLLOW_LINKS))
        status =
            index_fail(where, QE_E_PATH, name, "the shard is a symbolic link, and following was not asked for", err);
    else
        status = qe_reader_open(path, out, err);
    free(path);
    return status;
}

/* After all shards are loaded and no name is there twice. */
static qe_status cross_check(const qe_store *store, const char *where, json_t *map, json_t *shards, qe_error *err) {
    for (int64_t i = 0; i < store->tensor_count; i++) {
        const qe_store_tensor *t = &store->tensors[i];
        const json_t *shard = json_object_get(map, t->name);
        if (!shard)
            return index_fail(where, QE_E_MISMATCH, t->name, "a shard holds this tensor, the index does not", err);
        if (json_integer_value(json_object_get(shards, json_string_value(shard))) != t->file)
            return index_fail(where, QE_E_MISMATCH, t->name, "the tensor is in another shard than the index says", err);
    }
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value) if (qe_store_find(store, tensor) < 0) return index_fail(
        where, QE_E_MISSING, tensor, "the index names this tensor, its shard lacks it", err);
    return QE_OK;
}

static qe_status load_shards(qe_store *store, const char *where, json_t *map, json_t *shards, qe_error *err) {
    QE_TRY(list_shards(store, where, map, shards, err));
    store->files = qe_store_alloc(store, json_object_size(shards), sizeof *store->files);
    if (!store->files) return qe_store_nomem(store, err);
    const char *name;
    json_t *number;
    json_object_foreach(shards, name, number) {
        QE_TRY(open_shard(store, where, name, &store->files[store->file_count], err));
        store->file_count++;
        QE_TRY(qe_safetensors_load(store, (int32_t)json_integer_value(number), err));
    }
    QE_TRY(qe_store_index_tensors(store, err));
    return cross_check(store, where, map, shards, err);
}

qe_status qe_index_load(qe_store *store, const char *where, const char *json, size_t bytes, qe_error *err) {
    json_t *root, *shards = NULL;
    QE_TRY(qe_store_json(where, json, bytes, 0, &root, NULL, err));
    json_t *map = json_object_get(root, "weight_map"),
           *total = json_object_get(json_object_get(root, "metadata"), "total_size");
    qe_status status = QE_OK;
    if (!map)
        status = qe_error_at(err, QE_E_MISSING, where, -1, "no weight_map");
    else if (!json_is_object(map))
        status = qe_error_at(err, QE_E_TYPE, where, -1, "weight_map is not a map");
    else if (total && (!json_is_number(total) || json_number_value(total) < 0))
        status = qe_error_at(err, QE_E_TYPE, where, -1, "metadata.total_size is not a size");
    else if (!(shards = json_object()))
        status = qe_store_nomem(store, err);
    else
        status = load_shards(store, where, map, shards, err);
    json_decref(shards);
    json_decref(root);
    return status;
}
