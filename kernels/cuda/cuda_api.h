/* Every device call of the cuda backend, as one replaceable table. The nvcc build fills it from the CUDA runtime, the
 * emulator from host memory, tests replace it to inject failures. Codes are 0 or the runtime's own; text() names them.
 */
#ifndef QK_CUDA_API_H
#define QK_CUDA_API_H
#include <qk.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct qk_cuda_launch {
    const void *kernel;
    void (*invoke)(const void *kernel, void **args); /* calls the kernel's body as a host function (emulator) */
    void **args;
    const size_t *arg_bytes; /* sizes of the arguments, for who keeps them (emulator) */
    uint32_t arg_count;
    uint32_t grid[3], block, shared_bytes;
    uint32_t cluster[2]; /* neighbours along y and along z that run together; 0 and 1: none */
    uint32_t early;      /* may begin before the kernels ahead have ended; waits for them itself (launch.cuh) */
} qk_cuda_launch;

typedef struct qk_cuda_api {
    int (*count)(int *devices);
    int (*current)(int *ordinal);
    int (*select)(int ordinal);
    int (*facts)(int ordinal, qk_device *out); /* all fields but backend, ordinal and clusters */
    /* Of the current device, of sm_90: clusters of so many blocks that run at once, where each block takes a whole unit. */
    int (*clusters)(uint32_t blocks, int *at_once);
    int (*alloc)(void **out, size_t bytes);
    int (*release)(void *block);
    int (*copy)(void *dst, const void *src, size_t bytes, void *stream);
    int (*wait)(void *stream);
    int (*launch)(const qk_cuda_launch *launch, void *stream);
    /* A 2-D map with 128-byte swizzle over rows of `cols` bytes; map: 128 bytes, 64-byte aligned. */
    int (*tensor_map)(void *map, const void *base, uint64_t cols, uint64_t rows, uint64_t pitch, uint32_t box_rows);
    const char *(*text)(int code);
    bool (*out_of_memory)(int code);
    bool (*lost)(int code); /* the context is gone: every later call fails */
} qk_cuda_api;

const void *qk_cuda_whole_unit_sm90(void); /* a kernel to ask that with */
extern const qk_cuda_api qk_cuda_api_default; /* the build's own */
const qk_cuda_api *qk_cuda_api_now(void);
void qk_cuda_api_replace(const qk_cuda_api *api); /* NULL: the default again. Not for concurrent use. */
qe_status qk_cuda_fail(int code, const char *what, qe_error *err); /* QE_E_NOMEM, QE_E_DEVICE_LOST or QE_E_DEVICE */
qe_status qk_cuda_enqueue(const qk_cuda_launch *launch, const qk_queue *queue, const char *what, qe_error *err);

#ifdef __cplusplus
}
#endif
#endif
