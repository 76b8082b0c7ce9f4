# Compiler and linker flags. qe_flags is linked by every host target of the project; nothing here reaches its users.
add_library(qe_flags INTERFACE)

set(host "$<COMPILE_LANGUAGE:C,CXX>")
set(optimized "$<NOT:$<CONFIG:Debug>>")
target_compile_options(qe_flags INTERFACE
    "$<${host}:-Wall;-Wextra;-Wvla;-Werror>"
    "$<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes>"
    # The numerical contract writes every fused multiply-add as fmaf.
    "$<${host}:-ffp-contract=off>")

if(QE_SANITIZE)
    # -O1: the kernels compile in a tenth of the time, and the suites run about as fast.
    add_compile_options("$<${host}:-fsanitize=${QE_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all;-O1;-g1>")
    add_link_options("-fsanitize=${QE_SANITIZE}")
else()
    target_compile_options(qe_flags INTERFACE "$<$<AND:${host},${optimized}>:-U_FORTIFY_SOURCE;-D_FORTIFY_SOURCE=2>")
endif()

# For code that reads files. Kernels go without the stack protector: their hot loops are counted for stack references.
add_library(qe_hardening INTERFACE)
target_compile_options(qe_hardening INTERFACE "$<${host}:-fstack-protector-strong>")
add_link_options(-Wl,-z,relro,-z,now,-z,noexecstack)
