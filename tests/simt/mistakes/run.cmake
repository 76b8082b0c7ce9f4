# Builds the emulator's two GEMMs with each seeded mistake, with the hooks of the race flavour, and demands that the
# run fails; without a mistake it must pass. -DCXX, SIMT, INCLUDE, WORK, RUNTIME (objects, comma separated).
string(REPLACE "," ";" objects "${RUNTIME}")
list(FILTER objects EXCLUDE REGEX "simt_device")
file(MAKE_DIRECTORY ${WORK})
set(mistakes
    "80:0:none"
    "80:1:missing __syncthreads in the main loop"
    "80:2:read side swizzles wrongly"
    "80:3:loads row M"
    "80:5:cp.async.wait_group one too lenient"
    "80:6:mma A fragment registers swapped"
    "80:7:stores column N"
    "80:8:main-loop __syncthreads after the refill"
    "90:0:none"
    "90:1:missing __syncthreads after mbarrier.init"
    "90:2:wgmma descriptor advances twice as far along k"
    "90:4:producer waits with the wrong phase bit"
    "90:5:consumer waits with the wrong phase bit"
    "90:6:accumulator fragment rows swapped"
    "90:7:missing fence.proxy.async before the TMA store"
    "90:8:producer does not wait for the empty slot"
    "90:9:slot released before wgmma.wait_group"
    "90:10:expect_tx 128 bytes short"
    "90:11:epilogue without wgmma.wait_group 0"
    "90:12:missing named barrier before the TMA store"
    "90:13:only one warp of each warpgroup releases the slot")
set(flags -std=c++17 -O1 -g1 -fsanitize=thread -DSIMT_EMULATE -Wno-unknown-pragmas -Wno-psabi -I${SIMT}/include -I${SIMT}
    -I${INCLUDE})
execute_process(COMMAND ${CXX} ${flags} -x c++-header ${SIMT}/mistakes/mistaken.h -o ${WORK}/mistaken.h.gch
    COMMAND_ERROR_IS_FATAL ANY)
set(caught 0)
foreach(row IN LISTS mistakes)
    string(REGEX MATCH "^([0-9]+):([0-9]+):(.*)$" ignored "${row}")
    set(arch ${CMAKE_MATCH_1})
    set(number ${CMAKE_MATCH_2})
    set(label "${CMAKE_MATCH_3}")
    set(program ${WORK}/sm${arch}_${number})
    set(kind)
    if(arch EQUAL 90)
        set(kind -DKERNEL_SM90)
    endif()
    execute_process(COMMAND ${CXX} ${flags} -Winvalid-pch -I${WORK} -include mistaken.h -DSIMT_MISTAKE=${number} ${kind}
        -c ${SIMT}/mistakes/mistaken_gemm.cc -o ${program}.o RESULT_VARIABLE failed ERROR_VARIABLE output)
    if(NOT failed)
        execute_process(COMMAND ${CXX} ${program}.o ${objects} -o ${program} -lpthread RESULT_VARIABLE failed
            ERROR_VARIABLE output)
    endif()
    if(failed)
        message(FATAL_ERROR "sm_${arch} mistake ${number} does not build:\n${output}")
    endif()
    # Lazy completion, K tiles for two rounds of the ring, ragged edges; then an exact fit.
    execute_process(COMMAND ${program} --async lazy 257 136 720 200 264 2064 16 16 1280 TIMEOUT 120
        RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(number EQUAL 0 AND failed)
        message(FATAL_ERROR "sm_${arch} without a mistake fails:\n${output}")
    elseif(NOT number EQUAL 0 AND NOT failed)
        message(FATAL_ERROR "sm_${arch} mistake ${number} (${label}) was not caught")
    elseif(NOT number EQUAL 0)
        math(EXPR caught "${caught} + 1")
        string(REGEX MATCH "FAIL [^\n]*" first "${output}")
        message(STATUS "sm_${arch} ${label}: ${first}")
    endif()
endforeach()
message(STATUS "${caught} seeded mistakes, all caught")
