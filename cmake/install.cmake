# make install: library, headers, programs, pkg-config file, CMake package.
if(NOT TARGET qengine)
    return()
endif()
include(CMakePackageConfigHelpers)

install(TARGETS qengine EXPORT qengine-targets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/qengine DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
foreach(program qrun qquant qbench)
    if(TARGET ${program})
        install(TARGETS ${program} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
    endif()
endforeach()

# The prefix is told from where the file lies, so that one build may be installed anywhere (cmake --install --prefix).
set(pc_prefix ${CMAKE_INSTALL_PREFIX})
if(NOT IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
    file(RELATIVE_PATH pc_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
    set(pc_prefix "\${pcfiledir}/${pc_prefix}")
    string(REGEX REPLACE "/$" "" pc_prefix "${pc_prefix}")
endif()
configure_file(cmake/qengine.pc.in qengine.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/qengine.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/qengine)
install(EXPORT qengine-targets NAMESPACE qengine:: DESTINATION ${package_dir} FILE qengineTargets.cmake)
configure_package_config_file(cmake/qengineConfig.cmake.in qengineConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(qengineConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/qengineConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/qengineConfigVersion.cmake
    DESTINATION ${package_dir})
