# One OBJECT library per folder. The shared library, the programs and the tests all link the same objects, so tests reach
# hidden symbols without a second build.

# qe_add_objects(name folder [SOURCES_EXTRA...]): compile folder/*.c; a folder without sources gives no target.
function(qe_add_objects name folder)
    file(GLOB sources CONFIGURE_DEPENDS ${folder}/*.c)
    if(NOT sources)
        return()
    endif()
    add_library(${name} OBJECT ${sources})
    target_link_libraries(${name} PRIVATE qe_flags qe_deps)
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/include ${ARGN})
    set_property(GLOBAL APPEND PROPERTY QE_OBJECTS ${name})
endfunction()

# qe_link_objects(target): everything the library is made of. With EMULATOR the cuda backend is the emulated one.
function(qe_link_objects target)
    cmake_parse_arguments(arg "EMULATOR" "" "" ${ARGN})
    get_property(objects GLOBAL PROPERTY QE_OBJECTS)
    target_link_libraries(${target} PRIVATE ${objects} qe_deps)
    if(arg_EMULATOR)
        if(TARGET qk_cuda_simt)
            target_link_libraries(${target} PRIVATE qk_cuda_simt)
        endif()
    elseif(TARGET qk_cuda)
        target_link_libraries(${target} PRIVATE qk_cuda)
    endif()
endfunction()

# libqengine.so: hidden symbols but QE_API, SONAME from the major version (0.x: the minor one, which may break ABI).
function(qe_add_shared_library)
    get_property(objects GLOBAL PROPERTY QE_OBJECTS)
    if(NOT objects)
        return()
    endif()
    add_library(qengine SHARED)
    add_library(qengine::qengine ALIAS qengine)
    qe_link_objects(qengine)
    target_include_directories(qengine PUBLIC
        $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
    if(NOT QE_SANITIZE) # a sanitizer's run time is found only when a program is linked
        target_link_options(qengine PRIVATE -Wl,--no-undefined)
    endif()
    set_target_properties(qengine PROPERTIES VERSION ${PROJECT_VERSION}
        SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR} LINKER_LANGUAGE CXX)
endfunction()
