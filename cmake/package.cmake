# For programs in C and C++: a CMake package (find_package(mikv_cpp)) and a pkg-config file. Nobody links with the plug-in: a program
# loads it with ggml_backend_load() and asks its registry for the functions of mikv.h. So what these files tell is where things are.
include(CMakePackageConfigHelpers)

set(library_file "${library_folder}/$<TARGET_FILE_NAME:ggml-mikv>")
set(package_folder "${library_folder}/cmake/mikv_cpp")
configure_package_config_file(cmake/mikv_cpp-config.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/mikv_cpp-config.in.cmake"
    INSTALL_DESTINATION "${package_folder}" PATH_VARS header_folder library_file NO_CHECK_REQUIRED_COMPONENTS_MACRO)
file(GENERATE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/mikv_cpp-config.cmake" INPUT "${CMAKE_CURRENT_BINARY_DIR}/mikv_cpp-config.in.cmake")
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/mikv_cpp-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/mikv_cpp-config.cmake" "${CMAKE_CURRENT_BINARY_DIR}/mikv_cpp-config-version.cmake"
    DESTINATION "${package_folder}")

file(RELATIVE_PATH to_prefix "/${library_folder}/pkgconfig" "/")
file(RELATIVE_PATH to_headers "/${library_folder}/pkgconfig" "/${header_folder}")
file(CONFIGURE OUTPUT mikv_cpp.in.pc CONTENT "prefix=\${pcfiledir}/@to_prefix@
includedir=\${pcfiledir}/@to_headers@
plugin=\${pcfiledir}/../$<TARGET_FILE_NAME:ggml-mikv>
ggml_version=@MIKV_GGML_VERSION@

Name: mikv_cpp
Description: A mixed-precision KV cache for llama.cpp: a plug-in, loaded with ggml_backend_load(), not linked
Version: @PROJECT_VERSION@
Cflags: -I\${includedir}
" @ONLY)
file(GENERATE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/mikv_cpp.pc" INPUT "${CMAKE_CURRENT_BINARY_DIR}/mikv_cpp.in.pc")
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/mikv_cpp.pc" DESTINATION "${library_folder}/pkgconfig")
