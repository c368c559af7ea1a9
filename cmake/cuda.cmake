# mikv_cuda: the GPU kernels for NVIDIA's GPUs, and the CUDA runtime, linked statically: the plug-in uses no CUDA of the host program's.
if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90-real 120)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
add_library(mikv_cuda OBJECT native/backend/cuda/loose.cu native/backend/cuda/exact.cu native/backend/cuda/device.cu)
set_target_properties(mikv_cuda PROPERTIES CUDA_STANDARD 17 CUDA_RUNTIME_LIBRARY Static POSITION_INDEPENDENT_CODE ON)
set_source_files_properties(native/backend/cuda/exact.cu PROPERTIES COMPILE_OPTIONS -fmad=false) # the format fixes its bits
target_include_directories(mikv_cuda PUBLIC native)
target_compile_definitions(mikv_cuda INTERFACE MIKV_CUDA)
target_link_libraries(mikv_cuda PUBLIC CUDA::cudart_static)
