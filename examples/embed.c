/* Opens a model, continues a text greedily, prints it. Usage: embed MODEL TEXT */
#include <stdio.h>
#include <string.h>
#include <qengine/session.h>
#include <qengine/tokenizer.h>

static int failed(const qe_error *err) {
    fprintf(stderr, "embed: %s: %s\n", err->where, err->message);
    return 1;
}

int main(int argc, char **argv) {
    qe_error err = {0};
    qe_model *model = NULL;
    qe_device *device = NULL;
    qe_engine *engine = NULL;
    qe_session *session = NULL;
    int32_t ids[512];
    size_t count = 0, bytes = 0;
    char piece[4096];
    if (argc != 3) return fprintf(stderr, "usage: embed MODEL TEXT\n"), 2;
    if (qe_model_open(argv[1], NULL, &model, &err) || qe_device_create(NULL, &device, &err) ||
        qe_engine_create(device, model, NULL, &engine, &err) || qe_session_create(engine, &session, &err))
        return failed(&err);
    const qe_tokenizer *tokenizer = qe_model_tokenizer(model);
    if (qe_tokenizer_encode(tokenizer, argv[2], strlen(argv[2]), NULL, ids, 512, &count, &err)) return failed(&err);
    for (int made = 0; made < 32; made++) {
        qe_step_item item = {.session = session, .tokens = ids, .n_tokens = (int64_t)count, .want = QE_WANT_LAST};
        if (qe_engine_step(engine, &item, 1, NULL, &err) || qe_session_sample(session, NULL, ids, NULL, &err))
            return failed(&err);
        count = 1;
        if (qe_tokenizer_is_end(tokenizer, ids[0])) break;
        if (qe_tokenizer_piece(tokenizer, ids[0], 0, piece, sizeof piece, &bytes, &err)) return failed(&err);
        fwrite(piece, 1, bytes, stdout);
    }
    putchar('\n');
    qe_session_destroy(session);
    qe_engine_destroy(engine);
    qe_device_destroy(device);
    qe_model_close(model);
    return 0;
}
