// Which expert and which rows a block of a grouped GEMM works for. Without groups: expert 0 and all rows.
//
// Counts are read here, on the device. A call of contiguous groups has a block for every tile there may be, rows / tile + experts
// of them (only the last tile of a group is ragged); block i finds its tile by a walk along the offsets. Offsets are brought
// into 0 .. rows and made ascending, so that whatever they say no row beyond y is written.
#pragma once
#include "cuda_api.h"
#include "ptx.cuh"

namespace qk_cuda {

struct Tile {
    int64_t expert, first, end; // rows first .. end - 1 of x and y; none: first == end
};
struct Groups {
    const int32_t *rows; // offsets[experts + 1] or counts[experts]
    int experts;         // 0: no groups
    int64_t max_rows;    // 0: contiguous
    int64_t expert_bytes, total;

    PTX_FN Tile tile(int64_t index, int tokens) const {
        if (!experts) return {0, index * tokens, total};
        return max_rows ? masked(index, tokens) : contiguous(index, tokens);
    }
    PTX_FN Tile masked(int64_t index, int tokens) const {
        const int64_t each = (max_rows + tokens - 1) / tokens, expert = index / each, first = index % each * tokens;
        const int64_t count = rows[expert], most = count < max_rows ? count : max_rows, base = expert * max_rows;
        return first < most ? Tile{expert, base + first, base + most} : Tile{0, 0, 0};
    }
    PTX_FN Tile contiguous(int64_t index, int tokens) const {
        int64_t begin = clamped(rows[0], 0);
        for (int e = 0; e < experts; e++) {
            const int64_t end = clamped(rows[e + 1], begin), tiles = (end - begin + tokens - 1) / tokens;
            if (index < tiles) return {e, begin + index * tokens, end};
            index -= tiles, begin = end;
        }
        return {0, 0, 0};
    }
    PTX_FN int64_t clamped(int64_t row, int64_t least) const { return row < least ? least : row < total ? row : total; }
};
inline Groups groups_of(const qk_gemm_args *a) {
    const qk_groups &g = a->groups;
    return {g.rows, g.experts, g.max_rows, g.expert_bytes, a->x.m};
}
// Blocks that tiles of so many tokens need at most.
inline uint32_t tiles_of(const qk_gemm_args *a, int tokens) {
    const qk_groups &g = a->groups;
    const int64_t m = a->x.m;
    if (!g.experts) return uint32_t((m + tokens - 1) / tokens);
    if (g.max_rows) return uint32_t(g.experts * ((g.max_rows + tokens - 1) / tokens));
    return uint32_t(m / tokens + (g.experts < m ? g.experts : m)); // a group that has a tile has a row
}

} // namespace qk_cuda
