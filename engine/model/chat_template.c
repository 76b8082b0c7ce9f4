/* engine/model/chat_template.c -- known chat formats as one table, recognized by content; no template is executed. */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_parts.h"

typedef struct chat_format {
    const char *name;
    const char *marks[2];          /* texts a template of this kind contains, and tokens its vocabulary has */
    const char *open, *opened;     /* around the role */
    const char *close;             /* after the content */
    const char *assistant;         /* what the role "assistant" is called */
    bool        system_role;       /* false: the system text goes before the first user text */
    bool        trim;              /* blanks around contents are dropped */
} chat_format;

static const chat_format formats[] = {
    {"gemma", {"<start_of_turn>", "<end_of_turn>"}, "<start_of_turn>", "\n", "<end_of_turn>\n", "model", false, true},
    {"llama3", {"<|start_header_id|>", "<|eot_id|>"}, "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>",
     "assistant", true, true},
    {"chatml", {"<|im_start|>", "<|im_end|>"}, "<|im_start|>", "\n", "<|im_end|>\n", "assistant", true, false},
};
enum { FORMATS = sizeof formats / sizeof formats[0] };

static bool contains(const char *text, size_t bytes, const char *part) {
    size_t length = strlen(part);
    for (size_t at = 0; at + length <= bytes; at++) {
        const char *next = memchr(text + at, part[0], bytes - length + 1 - at);
        if (!next) return false;
        at = (size_t)(next - text);
        if (memcmp(next, part, length) == 0) return true;
    }
    return false;
}

qe_status qe_tokenizer_set_chat_template(qe_tokenizer *tokenizer, const char *text, size_t text_bytes, qe_error *err) {
    if (!tokenizer || (!text && text_bytes))
        return qe_error_set(err, QE_E_ARGUMENT, "qe_tokenizer_set_chat_template: NULL argument");
    tokenizer->chat = NULL;
    for (int i = 0; i < FORMATS && !tokenizer->chat; i++) {
        bool known = true;
        for (int m = 0; m < 2; m++) {
            const char *mark = formats[i].marks[m];
            int32_t     id = qe_tokenizer_find(tokenizer, mark, strlen(mark));
            known = known && id >= 0 && (!text || contains(text, text_bytes, mark));
        }
        if (known) tokenizer->chat = formats[i].name;
    }
    return QE_OK;
}

const char *qe_chat_template_name(const qe_tokenizer *tokenizer) { return tokenizer ? tokenizer->chat : NULL; }

/* The conversation; `ranges` are the parts we wrote, in which special tokens are meant. */
typedef struct rendering {
    char     *text;
    size_t    bytes, capacity;
    qe_range *ranges;
    size_t    ranges_count;
    qe_error *err;
} rendering;

static qe_status append(rendering *r, const char *text, size_t bytes, bool trusted) {
    if (bytes > SIZE_MAX / 4 - r->bytes) return qe_error_set(r->err, QE_E_LIMIT, "the conversation is too long");
    if (r->bytes + bytes > r->capacity) {
        size_t capacity = 2 * (r->bytes + bytes) + 256;
        char  *moved = realloc(r->text, capacity);
        if (!moved) return qe_error_set(r->err, QE_E_NOMEM, "no memory for a conversation of %zu bytes", capacity);
        r->text = moved;
        r->capacity = capacity;
    }
    if (trusted && bytes) {
        qe_range *last = r->ranges_count ? &r->ranges[r->ranges_count - 1] : NULL;
        if (last && last->end == r->bytes)
            last->end += bytes;
        else
            r->ranges[r->ranges_count++] = (qe_range){r->bytes, r->bytes + bytes};
    }
    if (bytes) memcpy(r->text + r->bytes, text, bytes);
    r->bytes += bytes;
    return QE_OK;
}

static qe_status append_text(rendering *r, const char *text) { return append(r, text, strlen(text), true); }

static qe_status append_content(rendering *r, const chat_format *format, const qe_chat_message *message) {
    const char *text = message->content;
    size_t      bytes = message->content_bytes;
    while (format->trim && bytes && strchr(" \t\n\v\f\r", text[0]) && text[0]) text++, bytes--;
    while (format->trim && bytes && strchr(" \t\n\v\f\r", text[bytes - 1]) && text[bytes - 1]) bytes--;
    return append(r, text, bytes, false);
}

static qe_status open_turn(rendering *r, const chat_format *format, const char *role) {
    QE_TRY(append_text(r, format->open));
    QE_TRY(append_text(r, strcmp(role, "assistant") == 0 ? format->assistant : role));
    return append_text(r, format->opened);
}

static qe_status check_message(const chat_format *format, const qe_chat_message *messages, size_t i, qe_error *err) {
    const qe_chat_message *m = &messages[i];
    if (!m->role || (!m->content && m->content_bytes))
        return qe_error_set(err, QE_E_ARGUMENT, "message %zu has no role or no content", i);
    bool system = strcmp(m->role, "system") == 0;
    char shown[64];
    if (!system && strcmp(m->role, "user") != 0 && strcmp(m->role, "assistant") != 0)
        return qe_error_set(err, QE_E_ARGUMENT, "message %zu: role \"%s\", expected system, user or assistant", i,
                            qe_escape(m->role, strlen(m->role), shown, sizeof shown));
    if (i > 0 && !format->system_role && strcmp(messages[i - 1].role, "system") == 0 && strcmp(m->role, "user") != 0)
        return qe_error_set(err, QE_E_ARGUMENT, "message %zu: this template wants a user message after the system's", i);
    return QE_OK;
}

static qe_status render(const qe_tokenizer *tokenizer, const qe_chat_message *messages, size_t count,
                        const qe_chat_options *options, rendering *r) {
    const chat_format *format = NULL;
    qe_chat_options    o;
    for (int i = 0; i < FORMATS; i++)
        if (tokenizer->chat == formats[i].name) format = &formats[i];
    if (!format)
        return qe_error_at(r->err, QE_E_UNSUPPORTED, tokenizer->where, -1, "no known chat template; render the text yourself");
    QE_TRY(qe_options_copy(options, sizeof o, &o, "qe_chat_options", r->err));
    if ((uint32_t)o.no_generation_prompt > 1)
        return qe_error_set(r->err, QE_E_ARGUMENT, "no_generation_prompt is %d", o.no_generation_prompt);
    if (count > SIZE_MAX / sizeof(qe_range) / 8)
        return qe_error_set(r->err, QE_E_LIMIT, "%zu messages", count);
    r->ranges = malloc((2 * count + 2) * sizeof *r->ranges);
    if (!r->ranges) return qe_error_set(r->err, QE_E_NOMEM, "no memory for %zu messages", count);
    bool opened = false;      /* a system text waits for its user text */
    for (size_t i = 0; i < count; i++) {
        QE_TRY(check_message(format, messages, i, r->err));
        bool folded = !format->system_role && strcmp(messages[i].role, "system") == 0;
        if (!opened) QE_TRY(open_turn(r, format, folded ? "user" : messages[i].role));
        QE_TRY(append_content(r, format, &messages[i]));
        opened = folded && i + 1 < count;
        QE_TRY(append_text(r, opened ? "\n\n" : format->close));
    }
    return o.no_generation_prompt ? QE_OK : open_turn(r, format, "assistant");
}

static qe_status check_call(const qe_tokenizer *tokenizer, const qe_chat_message *messages, size_t count,
                            const void *out, size_t capacity, const size_t *needed, qe_error *err) {
    if (!tokenizer || (!messages && count) || !needed || (!out && capacity))
        return qe_error_set(err, QE_E_ARGUMENT, "qe_chat: NULL argument");
    return QE_OK;
}

qe_status qe_chat_render(const qe_tokenizer *tokenizer, const qe_chat_message *messages, size_t messages_count,
                         const qe_chat_options *options, char *out, size_t out_capacity, size_t *out_bytes,
                         qe_error *err) {
    QE_TRY(check_call(tokenizer, messages, messages_count, out, out_capacity, out_bytes, err));
    rendering r = {.err = err};
    qe_status status = render(tokenizer, messages, messages_count, options, &r);
    if (!status) {
        *out_bytes = r.bytes;
        if (r.bytes <= out_capacity) {
            if (r.bytes) memcpy(out, r.text, r.bytes);
        } else if (out || out_capacity) {
            status = qe_error_set(err, QE_E_CAPACITY, "%zu bytes of text, room for %zu", r.bytes, out_capacity);
        }
    }
    free(r.text), free(r.ranges);
    return status;
}

qe_status qe_chat_encode(const qe_tokenizer *tokenizer, const qe_chat_message *messages, size_t messages_count,
                         const qe_chat_options *options, int32_t *ids, size_t ids_capacity, size_t *ids_count,
                         qe_error *err) {
    QE_TRY(check_call(tokenizer, messages, messages_count, ids, ids_capacity, ids_count, err));
    rendering r = {.err = err};
    qe_status status = render(tokenizer, messages, messages_count, options, &r);
    if (!status) {
        int32_t bos = tokenizer->special[QE_SPECIAL_BOS] >= 0 && strcmp(tokenizer->chat, "chatml") != 0 ? QE_BOS_ALWAYS
                                                                                                       : QE_BOS_DEFAULT;
        status = qe_encode_ranges(tokenizer, r.text, r.bytes, r.ranges, r.ranges_count, bos, ids, ids_capacity,
                                  ids_count, err);
    }
    free(r.text), free(r.ranges);
    return status;
}
