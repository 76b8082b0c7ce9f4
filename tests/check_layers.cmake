# Run as: cmake -DROOT=<repository> -P tests/check_layers.cmake
# Fails on an include that the layers forbid, a file name used twice, inline assembly outside its files, a call of
# abort or exit in the library, and a file or function over its budget.
cmake_minimum_required(VERSION 3.22)
set(problems 0)
function(problem text)
    message("${text}")
    math(EXPR problems "${problems} + 1")
    set(problems ${problems} PARENT_SCOPE)
endfunction()

# ---- which folder may include which ---------------------------------------------------------------------------------
# An include is resolved the way the compiler does: where it is quoted beside the file, then from the include folders of its
# target.
set(may_base base)
set(may_quant quant base)
set(may_format format quant base)
set(may_model model format quant base)
set(may_run run model format quant base)

function(check_includes file allowed_folders roots)
    file(STRINGS "${ROOT}/${file}" lines REGEX "^[ \t]*#[ \t]*include[ \t]*[\"<]")
    get_filename_component(here "${file}" DIRECTORY)
    foreach(line IN LISTS lines)
        string(REGEX REPLACE "^[^\"<]*[\"<]([^\">]+).*" "\\1" name "${line}")
        set(found "")
        set(from ${roots})
        if(line MATCHES "include[ \t]*\"")
            list(PREPEND from "${here}")
        endif()
        foreach(root IN LISTS from)
            if(NOT found AND EXISTS "${ROOT}/${root}/${name}")
                file(RELATIVE_PATH found "${ROOT}" "${ROOT}/${root}/${name}")
            endif()
        endforeach()
        if(NOT found)
            continue()   # a system header, or one of the CUDA headers the emulator supplies
        endif()
        get_filename_component(folder "${found}" DIRECTORY)
        if(NOT "${folder}" IN_LIST allowed_folders AND NOT "${found}" IN_LIST allowed_folders)
            problem("${file}: must not include ${found}")
        endif()
    endforeach()
    set(problems ${problems} PARENT_SCOPE)
endfunction()

foreach(layer base quant format model run)
    set(allowed include/qengine)
    foreach(folder IN LISTS may_${layer})
        list(APPEND allowed engine/${folder})
    endforeach()
    if(layer STREQUAL run)
        list(APPEND allowed kernels/qk.h)
    endif()
    file(GLOB files RELATIVE "${ROOT}" "${ROOT}/engine/${layer}/*.[ch]")
    foreach(file IN LISTS files)
        check_includes("${file}" "${allowed}" "engine;.;kernels;include")
    endforeach()
endforeach()
foreach(backend ref cpu cuda)
    file(GLOB files RELATIVE "${ROOT}" "${ROOT}/kernels/${backend}/*")
    foreach(file IN LISTS files)
        check_includes("${file}" "include/qengine;kernels/qk.h;kernels/${backend}" "kernels;.;include;engine;tests")   # ptx.cuh finds simt_ptx.h by the emulator build alone
    endforeach()
endforeach()
foreach(folder tools examples)
    file(GLOB files RELATIVE "${ROOT}" "${ROOT}/${folder}/*.[ch]")
    foreach(file IN LISTS files)
        check_includes("${file}" "include/qengine;${folder}" "include;.;engine;kernels")
    endforeach()
endforeach()

# ---- names, assembly, ends of the process ---------------------------------------------------------------------------
file(GLOB_RECURSE sources RELATIVE "${ROOT}" "${ROOT}/include/*.h" "${ROOT}/engine/*.[ch]" "${ROOT}/kernels/*.[ch]"
    "${ROOT}/kernels/*.cu" "${ROOT}/kernels/*.cuh" "${ROOT}/tools/*.[ch]" "${ROOT}/bench/*.[ch]"
    "${ROOT}/examples/*.[ch]" "${ROOT}/tests/*.h" "${ROOT}/tests/*.cc")
list(FILTER sources EXCLUDE REGEX "^tests/simt/include/|^build/")
set(names "")
foreach(file IN LISTS sources)
    get_filename_component(name "${file}" NAME)
    if("${name}" IN_LIST names AND NOT "${file}" MATCHES "^include/")
        # A public header and the internal one of the same noun are told apart by the include form.
        if(NOT EXISTS "${ROOT}/include/qengine/${name}")
            problem("${file}: the file name is used twice")
        endif()
    endif()
    list(APPEND names "${name}")
    file(READ "${ROOT}/${file}" text)
    if("${text}" MATCHES "[^a-zA-Z_](asm|__asm|__asm__)[ \t\n]*((volatile|__volatile|__volatile__|goto|inline)[ \t\n]*)*[(]" AND
       NOT "${file}" MATCHES "^kernels/cuda/ptx[.]cuh$|^kernels/cpu/simd[.]h$|^tests/simt/")
        problem("${file}: inline assembly belongs in kernels/cuda/ptx.cuh or kernels/cpu/simd.h")
    endif()
    if("${file}" MATCHES "^(engine|kernels)/" AND "${text}" MATCHES "[^a-zA-Z_](abort|exit|_exit)[ \t]*[(]")
        problem("${file}: the library never ends the process")
    endif()
endforeach()

# ---- budgets --------------------------------------------------------------------------------------------------------
# A function is counted from the line that opens a brace at column 0 or ends a definition's head, to a "}" at column 0.
set(count_functions [=[
FNR == 1 { inside = 0; head = "" }
!inside && /^[A-Za-z_].*[)] *(const)? *[{] *$/ { inside = 1; start = FNR; head = $0 }
!inside && /^ .*[)] *[{] *$/ && pending { inside = 1; start = pending_at; head = pending_text }
!inside && /^[A-Za-z_].*[(][^;{]*$/ { pending = 1; pending_at = FNR; pending_text = $0 }
/[;{}] *$/ { pending = 0 }
inside && /^}/ { if (FNR - start + 1 > limit) print FILENAME ":" start ": function of " FNR - start + 1 " lines, the cap is " limit; inside = 0 }
]=])
foreach(file IN LISTS sources)
    if("${file}" MATCHES "^include/")
        set(cap 350)
    elseif("${file}" MATCHES "^kernels/")
        set(cap 800)
    else()
        set(cap 600)
    endif()
    file(READ "${ROOT}/${file}" text)
    string(REGEX REPLACE "[^\n]" "" newlines "${text}")
    string(LENGTH "${newlines}" count)
    if(count GREATER cap AND NOT "${file}" STREQUAL "kernels/cuda/ptx.cuh")
        problem("${file}: ${count} lines, the cap is ${cap}")
    endif()
endforeach()
foreach(part "80;^(engine|tools|bench|examples|kernels/[^/]*$)" "150;^kernels/[a-z]+/")
    list(GET part 0 limit)
    list(GET part 1 pattern)
    set(files ${sources})
    list(FILTER files INCLUDE REGEX "${pattern}")
    if(NOT files)
        continue()
    endif()
    execute_process(COMMAND awk -v limit=${limit} "${count_functions}" ${files} WORKING_DIRECTORY "${ROOT}"
        OUTPUT_VARIABLE long RESULT_VARIABLE status)
    if(long OR status)
        problem("${long}")
    endif()
endforeach()

list(LENGTH sources count)
if(problems)
    message(FATAL_ERROR "${problems} problems in ${count} files")
endif()
message("layers, names and budgets hold in ${count} files")
