# mikv_ggml_headers: include folders of ggml, and MIKV_GGML_VERSION, the version that they are of.

if(MIKV_LLAMA_CPP_DIR)
    set(llama_cpp_dir "${MIKV_LLAMA_CPP_DIR}")
else()
    find_package(Python 3.9 REQUIRED COMPONENTS Interpreter)
    execute_process(
        COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/scripts/fetch_headers.py"
        OUTPUT_VARIABLE llama_cpp_dir OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
    if(failed)
        message(FATAL_ERROR "llama.cpp's headers could not be fetched (see above): set MIKV_LLAMA_CPP_DIR to the root of a llama.cpp source tree.")
    endif()
endif()

set(ggml_dir "${llama_cpp_dir}/ggml")
if(NOT EXISTS "${ggml_dir}/src/ggml-backend-impl.h")
    message(FATAL_ERROR "${llama_cpp_dir} has no ggml/src/ggml-backend-impl.h: set MIKV_LLAMA_CPP_DIR to the root of a llama.cpp source tree.")
endif()

set(ggml_numbers "")
foreach(part MAJOR MINOR PATCH)
    file(STRINGS "${ggml_dir}/CMakeLists.txt" line REGEX "^set\\(GGML_VERSION_${part} +[0-9]+" LIMIT_COUNT 1)
    if(NOT line MATCHES "([0-9]+)\\)")
        message(FATAL_ERROR "${ggml_dir}/CMakeLists.txt does not set GGML_VERSION_${part} in a line of its own: this ggml is not known.")
    endif()
    list(APPEND ggml_numbers "${CMAKE_MATCH_1}")
endforeach()
list(GET ggml_numbers 0 MIKV_GGML_MAJOR)
list(JOIN ggml_numbers "." MIKV_GGML_VERSION)
message(STATUS "ggml ${MIKV_GGML_VERSION} from ${llama_cpp_dir}")

add_library(mikv_ggml_headers INTERFACE)
target_include_directories(mikv_ggml_headers SYSTEM INTERFACE "${ggml_dir}/include" "${ggml_dir}/src")
target_compile_definitions(mikv_ggml_headers INTERFACE MIKV_GGML_VERSION="${MIKV_GGML_VERSION}")
