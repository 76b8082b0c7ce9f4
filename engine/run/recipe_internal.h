/* run/recipe_internal.h -- a recipe read, and what it decides for one module. */
#ifndef QE_RUN_RECIPE_INTERNAL_H
#define QE_RUN_RECIPE_INTERNAL_H
#include <qengine/quantize.h>
#include "run/engine_internal.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { QE_SMOOTH_NONE = 0, QE_SMOOTH_AWQ = 1, QE_SMOOTH_QUANT = 2 };
typedef struct qe_decision {
    qe_quant quant;
    qe_act   act;                   /* FLOAT, DYNAMIC, or STATIC with scale and zero still to be found */
    int32_t  method, order;         /* qe_method, QE_ORDER_* */
    int32_t  smooth, rotate;
    int32_t  range;                 /* qe_range_method */
    int32_t  full_range;
    int32_t  keep;                  /* 1: stays as it is */
    char     scheme[64], how[48];   /* as the recipe says them */
} qe_decision;

typedef struct qe_recipe qe_recipe;
/* method NULL: the recipe's own. QE_E_ARGUMENT names what is not understood. */
qe_status qe_recipe_parse(const char *text, const char *method, qe_recipe **out, qe_error *err);
void      qe_recipe_free(qe_recipe *recipe);
/* head: the embedding or the output head, kept unless a rule names it. */
qe_status qe_recipe_decide(const qe_recipe *recipe, const char *module, bool head, qe_decision *out, qe_error *err);

/* Rounds float weights of a model while they are loaded; needs methods that need no calibration. Free with _free. */
typedef struct qe_load_quantizer qe_load_quantizer;
qe_status qe_load_quantizer_create(const qe_model *model, const char *recipe, qe_load_quantizer **out,
                                   qe_weight_source *source, qe_error *err);
void      qe_load_quantizer_free(qe_load_quantizer *q);

/* Rows of a float weight as floats: [first_row, first_row + rows) into w[rows][k]. */
qe_status qe_weight_floats(const qe_model *model, const qe_weight_ref *ref, int64_t first_row, int64_t rows, float *w,
                           qe_error *err);
/* Without "re:" a pattern has * alone. */
qe_status qe_recipe_match(const char *pattern, const char *module, bool *matches, qe_error *err);
#ifdef __cplusplus
}
#endif
#endif
