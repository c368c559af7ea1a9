# libggml-mikv: the core, native/ggml and the C API, as a module that ggml loads at run time.

file(GLOB_RECURSE plugin_sources CONFIGURE_DEPENDS native/ggml/*.cpp)
add_library(ggml-mikv MODULE ${plugin_sources})
target_link_libraries(ggml-mikv PRIVATE mikv_core mikv_ggml_headers mikv_host)
set_target_properties(ggml-mikv PROPERTIES SKIP_BUILD_RPATH ON) # host_stubs.cmake says why
if(WIN32)
    set_target_properties(ggml-mikv PROPERTIES PREFIX "")
endif()

# What is exported: ggml's entry point and the functions that mikv_decl.h declares. Nothing else: the host may have a C++ library
# of its own.
set(declarations "${CMAKE_CURRENT_SOURCE_DIR}/native/include/mikv_decl.h")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${declarations}")
file(READ "${declarations}" text)
string(REGEX MATCHALL "\n[a-z][a-z0-9_ *]*[ *]mikv_[a-z0-9_]+\\(" prototypes "${text}")
set(exports ggml_backend_init)
foreach(prototype ${prototypes})
    string(REGEX MATCH "mikv_[a-z0-9_]+\\($" name "${prototype}")
    string(REPLACE "(" "" name "${name}")
    list(APPEND exports "${name}")
endforeach()

# The same functions through ggml's registry (ggml_backend_reg_get_proc_address), for programs that link with nothing of ours.
list(TRANSFORM exports REPLACE "(.+)" "MIKV_FUNCTION(\\1)" OUTPUT_VARIABLE functions)
list(REMOVE_ITEM functions "MIKV_FUNCTION(ggml_backend_init)")
list(JOIN functions "\n" functions)
file(CONFIGURE OUTPUT include/mikv_functions.inc CONTENT "${functions}\n")
target_include_directories(ggml-mikv PRIVATE "${CMAKE_CURRENT_BINARY_DIR}/include")

if(MSVC)
    list(JOIN exports "\n  " lines)
    file(CONFIGURE OUTPUT ggml-mikv.def CONTENT "EXPORTS\n  ${lines}\n")
    target_sources(ggml-mikv PRIVATE "${CMAKE_CURRENT_BINARY_DIR}/ggml-mikv.def")
elseif(APPLE)
    list(JOIN exports "\n_" lines)
    file(CONFIGURE OUTPUT ggml-mikv.exports CONTENT "_${lines}\n")
    target_link_options(ggml-mikv PRIVATE "-Wl,-exported_symbols_list,${CMAKE_CURRENT_BINARY_DIR}/ggml-mikv.exports")
elseif(NOT WIN32)
    list(JOIN exports "; " lines)
    file(CONFIGURE OUTPUT ggml-mikv.map CONTENT "{ global: ${lines}; local: *; };\n")
    target_link_options(ggml-mikv PRIVATE "-Wl,--version-script=${CMAKE_CURRENT_BINARY_DIR}/ggml-mikv.map")
    if(NOT (MIKV_SANITIZE AND CMAKE_CXX_COMPILER_ID MATCHES "Clang")) # Clang leaves the sanitizers' own symbols to the program
        target_link_options(ggml-mikv PRIVATE -Wl,--no-undefined)
    endif()
endif()

# Inside the Python package when a wheel is built, else as a C library is laid out.
if(SKBUILD)
    set(library_folder mikv_cpp/lib)
    set(header_folder mikv_cpp/include)
else()
    include(GNUInstallDirs)
    set(library_folder ${CMAKE_INSTALL_LIBDIR})
    set(header_folder ${CMAKE_INSTALL_INCLUDEDIR})
endif()
install(TARGETS ggml-mikv LIBRARY DESTINATION ${library_folder} RUNTIME DESTINATION ${library_folder})
install(FILES native/include/mikv.h native/include/mikv_decl.h DESTINATION ${header_folder})
include(package)
