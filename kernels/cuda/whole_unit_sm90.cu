// What the device is asked with how many clusters run at once: a kernel of sm_90a, as those that form clusters are. Launched
// by nobody; the shared memory that goes with the question is a whole unit's.
#include <cuda_runtime.h>

#include "cuda_api.h"

namespace qk_cuda {
static __global__ void whole_unit() {}
} // namespace qk_cuda

extern "C" const void *qk_cuda_whole_unit_sm90(void) {
    return reinterpret_cast<const void *>(&qk_cuda::whole_unit);
}
