/* qengine/tokenizer.h -- text to token ids and back.
 *
 * Two models are read: score-merge (SentencePiece as stored in GGUF, `tokenizer.ggml.model` = "llama": Gemma, Llama 2)
 * and byte-level BPE (Hugging Face tokenizer.json, and GGUF "gpt2": Llama 3, Qwen, GPT-2). A GGUF checkpoint brings
 * its tokenizer along (see model.h); a tokenizer.json is opened here.
 *
 * Text is length-carrying bytes; NUL is an ordinary byte. Bytes that are not UTF-8 are encoded one by one, never
 * refused and never read past. Outputs follow one rule: the count needed is always returned; when the buffer is too
 * small the call returns QE_E_CAPACITY and leaves the buffer untouched; a NULL buffer with capacity 0 asks for the
 * count and returns QE_OK.
 * Threads: a qe_tokenizer is immutable and may be shared (qe_tokenizer_set_chat_template is the exception: call it
 * before sharing). A qe_detokenizer belongs to one thread at a time. */
#ifndef QENGINE_TOKENIZER_H
#define QENGINE_TOKENIZER_H
#include <qengine/base.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qe_tokenizer qe_tokenizer;

/* Limits on what a file may hold; 0 means the default in brackets. */
typedef struct qe_tokenizer_options {
    uint32_t struct_size;          /* sizeof(qe_tokenizer_options) */
    uint32_t max_tokens;           /* [4,194,304] vocabulary, and merges */
    uint64_t max_json_bytes;       /* [256 MiB] */
    uint64_t max_text_bytes;       /* [1 GiB] one text to encode */
    uint32_t max_token_bytes;      /* [64 KiB] one token, one merge half */
    uint32_t max_pattern_bytes;    /* [16 KiB] one pre-tokenizer pattern */
} qe_tokenizer_options;

/* Open a Hugging Face tokenizer.json. The library copies what it needs. */
QE_API qe_status qe_tokenizer_open_json(const char *path, const qe_tokenizer_options *options, qe_tokenizer **out,
                                        qe_error *err);
QE_API qe_status qe_tokenizer_open_json_memory(const void *json, size_t json_bytes,
                                               const qe_tokenizer_options *options, qe_tokenizer **out,
                                               qe_error *err);
QE_API void qe_tokenizer_close(qe_tokenizer *tokenizer);      /* NULL is fine */

/* Vocabulary. Ids run from 0 to size - 1; an id may be a hole (no text), which encode never produces. */
QE_API int32_t qe_tokenizer_vocab_size(const qe_tokenizer *tokenizer);

typedef enum qe_special { QE_SPECIAL_BOS = 0, QE_SPECIAL_EOS = 1, QE_SPECIAL_PAD = 2, QE_SPECIAL_UNK = 3 } qe_special;
QE_API int32_t qe_tokenizer_special(const qe_tokenizer *tokenizer, qe_special which);      /* -1: has none */
/* 1 when generation ends at this id: EOS and the model's end-of-turn tokens. */
QE_API int     qe_tokenizer_is_end(const qe_tokenizer *tokenizer, int32_t id);
/* The id whose text is exactly this (special tokens included); -1 if there is none. */
QE_API int32_t qe_tokenizer_find(const qe_tokenizer *tokenizer, const char *text, size_t text_bytes);

typedef enum qe_bos_mode { QE_BOS_DEFAULT = 0, QE_BOS_ALWAYS = 1, QE_BOS_NEVER = 2 } qe_bos_mode;
typedef struct qe_encode_options {
    uint32_t struct_size;      /* sizeof(qe_encode_options) */
    int32_t  bos;              /* qe_bos_mode; default: as the model asks */
    int32_t  parse_special;    /* 1: the text of control tokens ("<bos>", "<|eot_id|>") becomes that token. 0: it is
                                  plain text. Leave 0 for text you do not trust. */
    int32_t  reserved;         /* 0 */
} qe_encode_options;

/* QE_E_LIMIT: text over max_text_bytes, or a pattern that exceeds its match limit on this text. */
QE_API qe_status qe_tokenizer_encode(const qe_tokenizer *tokenizer, const char *text, size_t text_bytes,
                                     const qe_encode_options *options, int32_t *ids, size_t ids_capacity,
                                     size_t *ids_count, qe_error *err);

/* Bytes of one token, or of many in a row. Control tokens give nothing unless show_special. The bytes of one token
 * need not be whole characters: to print while generating use a qe_detokenizer. QE_E_RANGE: not an id, or a hole. */
QE_API qe_status qe_tokenizer_piece(const qe_tokenizer *tokenizer, int32_t id, int show_special, char *out,
                                    size_t out_capacity, size_t *out_bytes, qe_error *err);
QE_API qe_status qe_tokenizer_decode(const qe_tokenizer *tokenizer, const int32_t *ids, size_t ids_count,
                                     int show_special, char *out, size_t out_capacity, size_t *out_bytes,
                                     qe_error *err);

/* Streaming: push ids, receive whole UTF-8 characters. Bytes of an unfinished character are held back until the next
 * push; bytes that cannot be UTF-8 become U+FFFD. finish gives out what is held (as U+FFFD) and starts anew. After
 * QE_E_CAPACITY the object is unchanged: call again with more room (piece bytes * 3 + 16 always suffices). The
 * tokenizer must outlive it. */
typedef struct qe_detokenizer qe_detokenizer;
QE_API qe_status qe_detokenizer_create(const qe_tokenizer *tokenizer, int show_special, qe_detokenizer **out,
                                       qe_error *err);
QE_API qe_status qe_detokenizer_push(qe_detokenizer *stream, int32_t id, char *out, size_t out_capacity,
                                     size_t *out_bytes, qe_error *err);
QE_API qe_status qe_detokenizer_finish(qe_detokenizer *stream, char *out, size_t out_capacity, size_t *out_bytes,
                                       qe_error *err);
QE_API void      qe_detokenizer_destroy(qe_detokenizer *stream);      /* NULL is fine */

/* Chat. Templates are not executed: known ones (Gemma, Llama 3, ChatML) are recognized by their content, or, where
 * the checkpoint brings none, by the turn tokens of the vocabulary. Anything else is QE_E_UNSUPPORTED: render the
 * text yourself and encode it with parse_special. */
typedef struct qe_chat_message {
    const char *role;               /* "system", "user" or "assistant" */
    const char *content;
    size_t      content_bytes;
} qe_chat_message;

typedef struct qe_chat_options {
    uint32_t struct_size;           /* sizeof(qe_chat_options) */
    int32_t  no_generation_prompt;  /* 1: end after the last message instead of opening the assistant's turn */
} qe_chat_options;

QE_API qe_status qe_tokenizer_set_chat_template(qe_tokenizer *tokenizer, const char *text, size_t text_bytes,
                                                qe_error *err);
/* "gemma", "llama3", "chatml", or NULL when the template is not a known one. */
QE_API const char *qe_chat_template_name(const qe_tokenizer *tokenizer);
/* The conversation as text, without BOS. Parsing it back with parse_special trusts the contents; prefer
 * qe_chat_encode, in which token text inside `content` stays plain text. */
QE_API qe_status qe_chat_render(const qe_tokenizer *tokenizer, const qe_chat_message *messages,
                                size_t messages_count, const qe_chat_options *options, char *out,
                                size_t out_capacity, size_t *out_bytes, qe_error *err);
QE_API qe_status qe_chat_encode(const qe_tokenizer *tokenizer, const qe_chat_message *messages,
                                size_t messages_count, const qe_chat_options *options, int32_t *ids,
                                size_t ids_capacity, size_t *ids_count, qe_error *err);

#ifdef __cplusplus
}
#endif
#endif
