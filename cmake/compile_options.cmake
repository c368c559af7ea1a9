# mikv_compile_options: the flags of all native code.
add_library(mikv_compile_options INTERFACE)

if(MSVC)
    # /fp:precise: without it the store path would not be bit-exact
    target_compile_options(mikv_compile_options INTERFACE /W4 /fp:precise /utf-8 /Zc:__cplusplus)
    target_compile_definitions(mikv_compile_options INTERFACE NOMINMAX _CRT_SECURE_NO_WARNINGS)
else()
    # -ffp-contract=off: the store path is bit-exact on every machine, so no compiler may fuse a multiply and an add by itself;
    # kernels that want a fused one say so.
    target_compile_options(mikv_compile_options INTERFACE
        -Wall -Wextra -Wpedantic -ffp-contract=off -fvisibility-inlines-hidden)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        target_compile_options(mikv_compile_options INTERFACE -fno-semantic-interposition)
        # an empty vector type passed by value warns that its ABI changed in some old GCC
        target_compile_options(mikv_compile_options INTERFACE -Wno-psabi)
    endif()
endif()
string(REPLACE "-O2" "-O3" CMAKE_CXX_FLAGS_RELEASE "${CMAKE_CXX_FLAGS_RELEASE}")

if(MIKV_SANITIZE)
    if(MSVC)
        message(FATAL_ERROR "MIKV_SANITIZE=${MIKV_SANITIZE} needs GCC or Clang: leave it empty for MSVC.")
    endif()
    target_compile_options(mikv_compile_options INTERFACE
        -fsanitize=${MIKV_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
    target_link_options(mikv_compile_options INTERFACE -fsanitize=${MIKV_SANITIZE})
endif()
