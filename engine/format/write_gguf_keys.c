/* write_gguf_keys.c -- key-values of one GGUF file carried into another, or into a file of their own. */
#include <stdlib.h>
#include <string.h>

#include "format/gguf_text.h"
#include "format/store_internal.h"

enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };
static const int widths[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static void put_float(qe_gguf_text *text, double value, int32_t type) {
    uint64_t bits = 0;
    float narrow = (float)value;
    if (type == F32) memcpy(&bits, &narrow, sizeof narrow);
    else memcpy(&bits, &value, sizeof value);
    qe_gguf_put_number(text, bits, widths[type]);
}

static void put_items(qe_gguf_text *text, const qe_meta_array *a) {
    for (int64_t i = 0; i < a->count; i++) {
        size_t bytes = 0;
        const char *item = a->item_type == STRING ? qe_meta_array_string(a, i, &bytes) : NULL;
        if (item) qe_gguf_put_text(text, item, bytes);
        else if (a->item_type == F32 || a->item_type == F64) put_float(text, qe_meta_array_float(a, i), a->item_type);
        else qe_gguf_put_number(text, (uint64_t)qe_meta_array_int(a, i), widths[a->item_type]);
    }
}

static void copy_key(qe_gguf_text *text, const qe_meta_entry *e) {
    int32_t type = e->array.item_type;
    if (e->kind == QE_META_ARRAY) {
        qe_gguf_key_array(text, e->key, (uint32_t)type, (uint64_t)e->array.count);
        put_items(text, &e->array);
        return;
    }
    if (e->kind == QE_META_STRING) {
        qe_gguf_key_string(text, e->key, e->text, e->text_bytes);
        return;
    }
    qe_gguf_put_text(text, e->key, strlen(e->key));
    qe_gguf_put_number(text, (uint64_t)type, 4);
    if (e->kind == QE_META_FLOAT) put_float(text, e->f, type);
    else qe_gguf_put_number(text, (uint64_t)e->i, widths[type]);
    text->count++;
}

void qe_gguf_copy_keys(qe_gguf_text *text, const qe_store *store, const char *prefix) {
    for (int64_t i = 0; store->kind == QE_STORE_GGUF && i < store->meta_count; i++)
        if (!strncmp(store->metas[i].key, prefix, strlen(prefix)) && strcmp(store->metas[i].key, "general.alignment"))
            copy_key(text, &store->metas[i]);
}

char *qe_gguf_keys_alone(const qe_gguf_text *keys, size_t *bytes) {
    qe_gguf_text out = {.failed = keys->failed};
    qe_gguf_put(&out, "GGUF", 4);
    qe_gguf_put_number(&out, 3, 4);
    qe_gguf_put_number(&out, 0, 8);
    qe_gguf_put_number(&out, keys->count, 8);
    qe_gguf_put(&out, keys->data, keys->bytes);
    if (out.failed) free(out.data);
    *bytes = out.bytes;
    return out.failed ? NULL : out.data;
}
