# mikv_emulated: the GPU kernels on an emulator of GPU execution (native/backend/emulated/). Linux with GCC or Clang.
#
# -fsanitize=thread makes the compiler announce each access to memory; announce.cpp hears of it, the sanitizer's library is not linked. Other
# sanitizers do not go together with it.
file(GLOB emulated_sources CONFIGURE_DEPENDS native/backend/emulated/*.cpp)
add_library(mikv_emulated OBJECT ${emulated_sources})
target_include_directories(mikv_emulated PUBLIC native)
target_compile_definitions(mikv_emulated PUBLIC MIKV_EMULATED_GPU)
target_link_libraries(mikv_emulated PUBLIC ${CMAKE_DL_LIBS})
target_compile_options(mikv_emulated PRIVATE -Wall -Wextra -Wpedantic -ffp-contract=off -g)
set_source_files_properties(native/backend/emulated/kernels.cpp PROPERTIES COMPILE_OPTIONS "-O1;-fsanitize=thread")
