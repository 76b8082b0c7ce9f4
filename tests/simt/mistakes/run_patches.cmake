# Applies each patch of patches/ to a copy of kernels/cuda, builds mistaken_w4.cc from it with the hooks of the race
# flavour, and demands that the run fails; a patch that does not apply fails the test, and without a patch every kernel
# must pass. The first line of a patch says which kernel it concerns and what is wrong.
# -DCXX, SIMT, ROOT, WORK, OBJECTS (the emulator and the packers, comma separated).
string(REPLACE "," ";" objects "${OBJECTS}")
list(FILTER objects INCLUDE REGEX "/simt_[a-z]+\\.cc|layout_cuda_w4\\.c")
list(FILTER objects EXCLUDE REGEX "simt_device")
file(GLOB sources ${ROOT}/kernels/cuda/*.cuh ${ROOT}/kernels/cuda/*.h)
file(GLOB patches ${SIMT}/mistakes/patches/*.patch)
list(LENGTH patches count)
if(count EQUAL 0)
    message(FATAL_ERROR "no patches in ${SIMT}/mistakes/patches")
endif()

# build_and_run(name kernel): sets `failed` and `output` of the run.
function(build_and_run name kernel)
    set(dir ${WORK}/${name})
    execute_process(COMMAND ${CXX} -std=c++17 -O1 -g1 -fsanitize=thread -DSIMT_EMULATE -DKERNEL=${kernel}
        -Wno-unknown-pragmas -Wno-psabi -ffp-contract=off -I${dir} -I${SIMT}/include -I${SIMT} -I${ROOT}/kernels
        -I${ROOT}/include ${SIMT}/mistakes/mistaken_w4.cc ${objects} -o ${dir}/run -lpthread
        RESULT_VARIABLE failed ERROR_VARIABLE output)
    if(failed)
        message(FATAL_ERROR "${name} does not build:\n${output}")
    endif()
    execute_process(COMMAND ${dir}/run TIMEOUT 120 RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
    set(failed ${failed} PARENT_SCOPE)
    set(output "${output}" PARENT_SCOPE)
endfunction()

foreach(kernel 80 90 16)
    file(REMOVE_RECURSE ${WORK}/none_${kernel})
    file(COPY ${sources} DESTINATION ${WORK}/none_${kernel})
    build_and_run(none_${kernel} ${kernel})
    if(failed)
        message(FATAL_ERROR "kernel ${kernel} without a mistake fails:\n${output}")
    endif()
endforeach()
foreach(patch IN LISTS patches)
    get_filename_component(name ${patch} NAME_WE)
    file(REMOVE_RECURSE ${WORK}/${name})
    file(COPY ${sources} DESTINATION ${WORK}/${name})
    execute_process(COMMAND patch --silent --fuzz=0 -p0 -i ${patch} WORKING_DIRECTORY ${WORK}/${name} RESULT_VARIABLE failed
        OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(failed)
        message(FATAL_ERROR "${name}.patch does not apply:\n${output}")
    endif()
    file(STRINGS ${patch} label LIMIT_COUNT 1)
    string(REGEX MATCH "^[0-9]+" kernel "${label}")
    build_and_run(${name} ${kernel})
    if(NOT failed)
        message(FATAL_ERROR "${name} (${label}) was not caught")
    endif()
    string(REGEX MATCH "FAIL [^\n]*" first "${output}")
    message(STATUS "${label}: ${first}")
endforeach()
message(STATUS "${count} seeded mistakes, all caught")
