# Run as: cmake -DROOT=<repository> -DTEXT=<without one> -DOUT=<header> -P cmake/commit.cmake
# Writes the commit that is built, "-dirty" behind it with changes that are not committed; touches the file only when it differs.
execute_process(COMMAND git -C "${ROOT}" describe --always --abbrev=12 --dirty --exclude=* OUTPUT_VARIABLE commit
    RESULT_VARIABLE failed OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(failed OR NOT EXISTS "${ROOT}/.git")
    set(commit "${TEXT}")
endif()
set(text "#define BENCH_COMMIT \"${commit}\"\n")
if(EXISTS "${OUT}")
    file(READ "${OUT}" before)
endif()
if(NOT "${text}" STREQUAL "${before}")
    file(WRITE "${OUT}" "${text}")
endif()
