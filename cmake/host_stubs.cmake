# mikv_host: what the plug-in links with in place of ggml.
#
# Whoever loads the plug-in (a Python process with llama_cpp in it, llama-server) has ggml's libraries in memory already, and the
# plug-in must use those very copies: a second ggml in one process has its own registry and its own types, which is fatal. So we do
# not link with any libggml of ours. We link with stubs that have the same names (soname libggml-base.so.0; on macOS
# @rpath/libggml-base.0.dylib; on Windows ggml-base.dll) and define just the symbols we call, and do not ship them: a dynamic linker
# that meets a needed library whose name is loaded already takes the loaded one, wherever it came from. No run path is set, on
# purpose: without a ggml in the process, loading the plug-in fails, where a run path would bring in a second ggml.
#
# native/ggml/symbols.txt says what we call, one "library symbol" per line. A call to anything else is a link error.
# Linux is what this was run on; the branches for macOS and Windows are written by their rules and untested.

set(symbols_file "${CMAKE_CURRENT_SOURCE_DIR}/native/ggml/symbols.txt")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${symbols_file}")
file(STRINGS "${symbols_file}" symbol_lines REGEX "^[a-z]")

set(host_libraries "")
foreach(line ${symbol_lines})
    if(NOT line MATCHES "^([a-z0-9-]+) ([A-Za-z0-9_]+)$")
        message(FATAL_ERROR "native/ggml/symbols.txt: \"${line}\" is not of the form \"library symbol\".")
    endif()
    list(APPEND host_libraries "${CMAKE_MATCH_1}")
    string(APPEND stub_${CMAKE_MATCH_1} "MIKV_STUB void ${CMAKE_MATCH_2}(void) {}\n")
endforeach()
list(REMOVE_DUPLICATES host_libraries)

add_library(mikv_host INTERFACE)
foreach(library ${host_libraries})
    set(source "${CMAKE_CURRENT_BINARY_DIR}/stubs/${library}.c")
    file(CONFIGURE OUTPUT "${source}" CONTENT
"/* Generated from native/ggml/symbols.txt: the symbols of ${library} and none of its code. */
#ifdef _WIN32
#define MIKV_STUB __declspec(dllexport)
#else
#define MIKV_STUB
#endif
${stub_${library}}")
    add_library(stub_${library} SHARED "${source}")
    set_target_properties(stub_${library} PROPERTIES
        OUTPUT_NAME "${library}"
        VERSION "${MIKV_GGML_VERSION}" SOVERSION "${MIKV_GGML_MAJOR}"
        MACOSX_RPATH ON
        ARCHIVE_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/stubs"
        LIBRARY_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/stubs"
        RUNTIME_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/stubs")
    if(WIN32)
        set_target_properties(stub_${library} PROPERTIES PREFIX "")
    endif()
    target_link_libraries(mikv_host INTERFACE stub_${library})
endforeach()
