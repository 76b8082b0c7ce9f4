#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

void qe_log_line(const qe_log *log, qe_log_level level, const char *format, ...) {
    char line[512];
    va_list args;
    if (!log || !log->write) return;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    log->write(log->ctx, level, line);
}
