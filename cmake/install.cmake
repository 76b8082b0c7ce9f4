# make install: library, headers, programs, pkg-config file, CMake package.
if(NOT TARGET qengine)
    return()
endif()
include(CMakePackageConfigHelpers)

install(TARGETS qengine EXPORT qengine-targets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/qengine DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
foreach(program qrun qbench)
    if(TARGET ${program})
        install(TARGETS ${program} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
    endif()
endforeach()

configure_file(cmake/qengine.pc.in qengine.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/qengine.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/qengine)
install(EXPORT qengine-targets NAMESPACE qengine:: DESTINATION ${package_dir} FILE qengineTargets.cmake)
configure_package_config_file(cmake/qengineConfig.cmake.in qengineConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(qengineConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/qengineConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/qengineConfigVersion.cmake
    DESTINATION ${package_dir})
