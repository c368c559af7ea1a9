# mikv_metal: the GPU kernels for Apple's GPUs, as text that Metal compiles at start, and their host side. Never built by the project itself.
if(NOT APPLE)
    message(FATAL_ERROR "MIKV_METAL=ON needs macOS: leave it off here.")
endif()
enable_language(OBJCXX)
find_package(Python 3.9 REQUIRED COMPONENTS Interpreter)
foreach(kind exact loose)
    set(literal "${CMAKE_CURRENT_BINARY_DIR}/metal/mikv_metal_${kind}.inc")
    add_custom_command(
        OUTPUT "${literal}"
        COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/scripts/metal_text.py" ${kind} --literal -o "${literal}"
        DEPENDS ${gpu_texts} "${CMAKE_CURRENT_SOURCE_DIR}/scripts/metal_text.py")
    list(APPEND literals "${literal}")
endforeach()
add_library(mikv_metal OBJECT native/backend/metal/device.mm ${literals})
target_include_directories(mikv_metal PUBLIC native PRIVATE "${CMAKE_CURRENT_BINARY_DIR}/metal")
target_compile_options(mikv_metal PRIVATE -fobjc-arc)
target_compile_definitions(mikv_metal INTERFACE MIKV_METAL)
target_link_libraries(mikv_metal PUBLIC "-framework Foundation" "-framework Metal")
