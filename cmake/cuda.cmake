# The cuda backend, twice from the same sources: qk_cuda by nvcc when the toolkit is there, qk_cuda_simt by the host
# compiler against the SIMT emulator (tests/simt), which needs no toolkit.
set(cuda_dir ${PROJECT_SOURCE_DIR}/kernels/cuda)
file(GLOB QK_CUDA_C CONFIGURE_DEPENDS ${cuda_dir}/*.c)
file(GLOB QK_CUDA_CU CONFIGURE_DEPENDS ${cuda_dir}/*.cu)

# ---- nvcc ----------------------------------------------------------------------------------------------------------
if(NOT QE_CUDA STREQUAL "OFF")
    include(CheckLanguage)
    if(NOT CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
        set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
    endif()
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
        set(CMAKE_CUDA_ARCHITECTURES OFF) # every object names its own
        enable_language(CUDA)
        if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
            message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.4: left out")
            set(CMAKE_CUDA_COMPILER "")
        endif()
    endif()
    if(NOT CMAKE_CUDA_COMPILER AND QE_CUDA STREQUAL "ON")
        message(FATAL_ERROR "QE_CUDA=ON, but no nvcc of CUDA 12.4 or later was found")
    endif()
endif()

if(CMAKE_CUDA_COMPILER)
    find_package(CUDAToolkit REQUIRED)
    set(CMAKE_CUDA_STANDARD 17)
    # The contract forbids contraction and approximations; num.h writes every fused operation.
    set(cuda_flags -fmad=false -ftz=false -prec-div=true -prec-sqrt=true -Xptxas=-v -Xptxas=-warn-spills
        -Xptxas=-warn-lmem-usage --Werror=all-warnings -Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off)
    function(qk_cuda_objects name codes)
        add_library(${name} OBJECT ${ARGN})
        target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/kernels)
        target_include_directories(${name} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
        target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${cuda_flags};${codes}>
            $<$<COMPILE_LANGUAGE:C>:-Wall;-Wextra;-Werror;-ffp-contract=off>)
        set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_SEPARABLE_COMPILATION OFF)
    endfunction()
    # One object library per SM floor. prepare is of both: on sm_90 it lets the GEMM behind it begin early.
    set(sm90 ${QK_CUDA_CU})
    list(FILTER sm90 INCLUDE REGEX "_sm90\\.cu$")
    set(sm80 ${QK_CUDA_CU})
    list(REMOVE_ITEM sm80 ${sm90} ${cuda_dir}/prepare.cu)
    qk_cuda_objects(qk_cuda_sm80 "-gencode=arch=compute_80,code=[sm_80,compute_80]" ${sm80} ${QK_CUDA_C})
    qk_cuda_objects(qk_cuda_sm90 "-gencode=arch=compute_90a,code=sm_90a" ${sm90})
    qk_cuda_objects(qk_cuda_both "-gencode=arch=compute_80,code=[sm_80,compute_80];-gencode=arch=compute_90,code=[sm_90,compute_90]"
        ${cuda_dir}/prepare.cu)
    add_library(qk_cuda INTERFACE)
    target_sources(qk_cuda INTERFACE $<TARGET_OBJECTS:qk_cuda_sm80> $<TARGET_OBJECTS:qk_cuda_sm90> $<TARGET_OBJECTS:qk_cuda_both>)
    target_link_libraries(qk_cuda INTERFACE CUDA::cudart_static)
    if(QE_BUILD_TESTS)
        add_test(NAME ptxas_report COMMAND ${CMAKE_COMMAND} -DNVCC=${CMAKE_CUDA_COMPILER} -DROOT=${PROJECT_SOURCE_DIR}
            -DWORK=${CMAKE_BINARY_DIR}/ptxas -P ${PROJECT_SOURCE_DIR}/tests/ptxas_report.cmake)
        set_tests_properties(ptxas_report PROPERTIES TIMEOUT 600)
    endif()
else()
    message(STATUS "CUDA: left out")
endif()

# ---- emulator ------------------------------------------------------------------------------------------------------
if(QE_EMULATOR AND QE_BUILD_TESTS AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    add_subdirectory(tests/simt)
endif()
