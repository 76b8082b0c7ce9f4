/* base/json_internal.h -- the parser behind qe_json_parse(), which has checked the arguments and the limits. */
#ifndef QE_BASE_JSON_INTERNAL_H
#define QE_BASE_JSON_INTERNAL_H
#include "base/json.h"

qe_status qe_json_tree(const char *text, size_t bytes, uint32_t max_depth, const char *where, json_t **out,
                       qe_error *err);
#endif
