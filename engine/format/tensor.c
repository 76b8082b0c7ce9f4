/* The tensor list of a store: lookup, sizes, and reading rows into the canonical form. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "format/packed.h"

enum { SCRATCH_BYTES = 1 << 20 };

int64_t qe_store_tensor_count(const qe_store *store) {
    return store->tensor_count;
}

const qe_store_tensor *qe_store_tensor_at(const qe_store *store, int64_t index) {
    return index >= 0 && index < store->tensor_count ? &store->tensors[index] : NULL;
}

int64_t qe_store_find(const qe_store *store, const char *name) {
    int64_t lo = 0, hi = store->tensor_count;
    while (lo < hi) {
        int64_t mid = lo + (hi - lo) / 2;
        int order = strcmp(store->tensors[store->tensor_order[mid]].name, name);
        if (!order) return store->tensor_order[mid];
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return -1;
}

const char *qe_store_type_name(const qe_store_tensor *tensor) {
    return tensor->type->name;
}

const qe_quant *qe_store_quant(const qe_store_tensor *tensor) {
    return &tensor->type->quant;
}

qe_status qe_tensor_measure(qe_store_tensor *t, const char *where, uint64_t at, qe_error *err) {
    uint64_t elements = 1, nonzero = 1, bytes;
    for (int32_t i = 0; i < t->rank; i++) {
        elements *= (uint64_t)t->dims[i];
        if (!qe_check_mul(nonzero, t->dims[i] ? (uint64_t)t->dims[i] : 1, &nonzero) || nonzero > INT64_MAX)
            return qe_error_at(err, QE_E_OVERFLOW, where, (int64_t)at, "the element count of a tensor overflows");
    }
    t->columns = t->rank ? t->dims[t->rank - 1] : 1;
    t->rows = 1;
    for (int32_t i = 0; i + 1 < t->rank; i++) t->rows *= t->dims[i];
    uint64_t block = (uint64_t)t->type->block;
    if (!qe_check_mul(nonzero / block + (nonzero % block != 0), (uint64_t)t->type->block_bytes, &bytes) ||
        bytes > INT64_MAX)
        return qe_error_at(err, QE_E_OVERFLOW, where, (int64_t)at, "the byte count of a tensor overflows");
    if (block > 4 && (uint64_t)t->columns % block)
        return qe_error_at(err, QE_E_SHAPE, where, (int64_t)at,
                           "rows of %lld elements are no multiple of the %s block, %d", (long long)t->columns,
                           t->type->name, t->type->block);
    if (elements % block)
        return qe_error_at(err, QE_E_ALIGN, where, (int64_t)at, "%llu elements of %s are no whole number of bytes",
                           (unsigned long long)elements, t->type->name);
    t->bytes = elements / block * (uint64_t)t->type->block_bytes;
    return QE_OK;
}

/* ---- reading -------------------------------------------------------------------------------------------------- */
typedef struct read_job {
    const qe_store *store;
    const qe_store_tensor *t;
    const int64_t *row_map;
    int64_t first_row;
    uint64_t row_bytes;
    uint8_t *scratch;
    int64_t scratch_rows;
    qe_qtensor *band;
} read_job;

static int64_t file_row(const read_job *job, int64_t band_row) {
    return job->row_map ? job->row_map[job->first_row + band_row] : job->first_row + band_row;
}

static qe_status check_read(const qe_store *store, const qe_store_tensor *t, int64_t first_row, int64_t rows,
                            const int64_t *row_map, const qe_qtensor *band, qe_error *err) {
    if (!t->type->decode && !t->packed)
        return qe_error_at(err, QE_E_UNSUPPORTED, store->files[t->file].name, (int64_t)t->offset,
                           "tensor \"%s\" is of type %s, which is not read", t->name, t->type->name);
    if (rows < 0 || first_row < 0 || first_row > t->rows || rows > t->rows - first_row)
        return qe_error_set(err, QE_E_ARGUMENT, "rows %lld + %lld of \"%s\", which has %lld", (long long)first_row,
                            (long long)rows, t->name, (long long)t->rows);
    if (!band || band->n != rows || band->k != t->columns || memcmp(&band->quant, &t->type->quant, sizeof band->quant))
        return qe_error_set(err, QE_E_ARGUMENT, "the band was not placed for %lld rows of \"%s\"", (long long)rows,
                            t->name);
    for (int64_t i = 0; row_map && i < rows; i++)
        if (row_map[first_row + i] < 0 || row_map[first_row + i] >= t->rows)
            return qe_error_set(err, QE_E_ARGUMENT, "row map entry %lld of \"%s\" is out of range",
                                (long long)(first_row + i), t->name);
    return QE_OK;
}

/* As many band rows from `row` on as one read covers: their file rows span at most the scratch and twice their count.
 * *lowest is the first file row of the span, *span its length. */
static int64_t gather(const read_job *job, int64_t row, int64_t *lowest, int64_t *span) {
    int64_t lo = file_row(job, row), hi = lo, count = 1, taken = 1;
    *lowest = lo;
    *span = 1;
    for (; row + count < job->band->n && count < job->scratch_rows; count++) {
        int64_t next = file_row(job, row + count);
        if (next < lo) lo = next;
        if (next > hi) hi = next;
        if (hi - lo + 1 > job->scratch_rows) break;
        if (hi - lo + 1 > 2 * (count + 1)) continue;
        taken = count + 1;
        *lowest = lo;
        *span = hi - lo + 1;
    }
    return taken;
}

static qe_status read_rows(read_job *job, qe_error *err) {
    const qe_reader *file = &job->store->files[job->t->file];
    for (int64_t row = 0; row < job->band->n;) {
        int64_t lowest, span, count = gather(job, row, &lowest, &span);
        QE_TRY(file->read_at(file->ctx, job->t->offset + (uint64_t)lowest * job->row_bytes, job->scratch,
                             (size_t)((uint64_t)span * job->row_bytes), err));
        for (int64_t i = 0; i < count; i++, row++) {
            int64_t from = file_row(job, row);
            int64_t bad =
                job->t->type->decode(job->scratch + (uint64_t)(from - lowest) * job->row_bytes, row, job->band);
            if (bad >= 0)
                return qe_error_at(err, QE_E_VALUE, file->name,
                                   (int64_t)(job->t->offset + (uint64_t)from * job->row_bytes),
                                   "tensor \"%s\" (%s) holds a NaN or infinity in row %lld, block at column %lld",
                                   job->t->name, job->t->type->name, (long long)from, (long long)bad);
        }
    }
    return QE_OK;
}

qe_status qe_store_read(const qe_store *store, int64_t tensor, int64_t first_row, int64_t rows, const int64_t *row_map,
                        qe_qtensor *band, qe_error *err) {
    const qe_store_tensor *t = qe_store_tensor_at(store, tensor);
    if (!t) return qe_error_set(err, QE_E_ARGUMENT, "no tensor %lld", (long long)tensor);
    QE_TRY(check_read(store, t, first_row, rows, row_map, band, err));
    band->first_row = first_row;
    band->rows = t->rows;
    band->facts = 0;
    if (!rows || !t->bytes) return QE_OK;
    if (t->packed) return t->packed->read(store, t, first_row, rows, row_map, band, err);
    uint64_t row_bytes = t->bytes / (uint64_t)t->rows;
    int64_t scratch_rows = row_bytes < SCRATCH_BYTES ? (int64_t)(SCRATCH_BYTES / row_bytes) : 1;
    if (scratch_rows > t->rows) scratch_rows = t->rows;
    read_job job = {store, t, row_map, first_row, row_bytes, NULL, scratch_rows, band};
    job.scratch = malloc((size_t)scratch_rows * (size_t)row_bytes);
    if (!job.scratch) return qe_store_nomem(store, err);
    qe_status status = read_rows(&job, err);
    free(job.scratch);
    return status;
}

void qe_store_form(const qe_store *store, int64_t tensor, qe_qtensor *form, int32_t *act_known) {
    const qe_store_tensor *t = &store->tensors[tensor];
    *form = (qe_qtensor){.quant = t->type->quant, .n = t->rows, .rows = t->rows, .k = t->columns};
    *act_known = t->packed != NULL;
    if (!t->packed) return;
    form->act = t->packed->act;
    form->hadamard = t->packed->hadamard;
    form->facts = t->packed->facts;
    form->order = t->packed->order;
    form->col_scale = t->packed->col_scale;
}

const char *qe_store_note(const qe_store *store, const char *key) {
    return json_string_value(json_object_get(store->notes, key));
}

qe_status qe_store_read_raw(const qe_store *store, int64_t tensor, uint64_t offset, void *data, size_t bytes, qe_error *err) {
    const qe_store_tensor *t = &store->tensors[tensor];
    const qe_reader *file = &store->files[t->file];
    if (t->packed || offset > t->bytes || bytes > t->bytes - offset)
        return qe_error_set(err, QE_E_ARGUMENT, "bytes %llu + %zu of \"%s\"", (unsigned long long)offset, bytes, t->name);
    return file->read_at(file->ctx, t->offset + offset, data, bytes, err);
}
