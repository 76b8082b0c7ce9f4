/* base/utf8.h -- well-formed UTF-8, byte by byte. */
#ifndef QE_BASE_UTF8_H
#define QE_BASE_UTF8_H
#include <stddef.h>

/* Length of the well-formed sequence at `text`, 0 if there is none (overlong, surrogate, beyond U+10FFFF, cut). At
 * least one byte must be left. */
static inline size_t qe_utf8_length(const char *text, size_t left) {
    const unsigned char *p = (const unsigned char *)text;
    if (p[0] < 0x80) return 1;
    size_t length = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || left < length) return 0;
    if (p[0] == 0xe0 && p[1] < 0xa0) return 0;
    if (p[0] == 0xed && p[1] > 0x9f) return 0;
    if (p[0] == 0xf0 && p[1] < 0x90) return 0;
    if (p[0] == 0xf4 && p[1] > 0x8f) return 0;
    for (size_t i = 1; i < length; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    return length;
}
#endif
