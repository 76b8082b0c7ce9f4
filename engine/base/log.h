/* base/log.h -- one formatted line to the host's log; nothing happens without one. */
#ifndef QE_BASE_LOG_H
#define QE_BASE_LOG_H
#include <qengine/base.h>
void qe_log_line(const qe_log *log, qe_log_level level, const char *format, ...) QE_PRINTF(3, 4);
#endif
