/* session.c -- timelines: their pages, their length, the row of logits they keep. */
#include <stdlib.h>

#include "run/engine_internal.h"

static void release(qe_session *s) {
    free(s->pages.page);
    free(s->logits);
    free(s->sample_scratch);
    free(s);
}

qe_status qe_session_create(qe_engine *engine, qe_session **out, qe_error *err) {
    if (out) *out = NULL;
    if (!engine || !out) return qe_error_set(err, QE_E_ARGUMENT, "a session needs an engine and a place");
    qe_session *s = calloc(1, sizeof *s);
    if (!s) return qe_error_set(err, QE_E_NOMEM, "no memory for a session");
    s->engine = engine;
    s->pages.capacity = (int32_t)qe_kv_pages_for(engine->context);
    s->pages.page = malloc((size_t)s->pages.capacity * sizeof *s->pages.page);
    s->logits = malloc((size_t)engine->hp.vocab * sizeof *s->logits);
    qe_status status = s->pages.page && s->logits ? QE_OK : qe_error_set(err, QE_E_NOMEM, "no memory for a session");
    pthread_mutex_lock(&engine->turn);
    if (!status && engine->sessions >= engine->max_sessions)
        status = qe_error_set(err, QE_E_CAPACITY, "%d sessions are alive, max_sessions is %d", engine->sessions,
                              engine->max_sessions);
    if (!status) engine->sessions++;
    pthread_mutex_unlock(&engine->turn);
    if (status) {
        release(s);
        return status;
    }
    *out = s;
    return QE_OK;
}

void qe_session_destroy(qe_session *session) {
    if (!session) return;
    qe_engine *engine = session->engine;
    pthread_mutex_lock(&engine->turn);
    qe_kv_trim(&engine->kv, &session->pages, 0);
    engine->sessions--;
    pthread_mutex_unlock(&engine->turn);
    release(session);
}

int64_t qe_session_length(const qe_session *session) {
    return session ? session->length : 0;
}

qe_status qe_session_rewind(qe_session *session, int64_t length, qe_error *err) {
    if (!session) return qe_error_set(err, QE_E_ARGUMENT, "session is NULL");
    if (length < 0 || length > session->length)
        return qe_error_set(err, QE_E_ARGUMENT, "rewind to %lld of %lld tokens", (long long)length,
                            (long long)session->length);
    pthread_mutex_lock(&session->engine->turn);
    qe_kv_trim(&session->engine->kv, &session->pages, length);
    pthread_mutex_unlock(&session->engine->turn);
    session->length = length;
    session->has_logits = false;
    return QE_OK;
}

float *qe_session_logits(qe_session *session) {
    return session && session->has_logits ? session->logits : NULL;
}
