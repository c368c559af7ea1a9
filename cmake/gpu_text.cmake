# MIKV_GPU_TEXT: a hash of everything that GPU kernels are compiled from, so that a verdict of the self-test is of this text.
file(GLOB_RECURSE gpu_texts CONFIGURE_DEPENDS native/kernel/*.h native/codec/*.h native/format/*.h native/dialect/*.h native/backend/cuda/*
     native/backend/metal/*)
list(SORT gpu_texts)
set(hashes "")
foreach(file ${gpu_texts})
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${file}")
    file(SHA256 "${file}" hash)
    string(APPEND hashes "${hash}")
endforeach()
string(SHA256 MIKV_GPU_TEXT "${hashes}")
string(SUBSTRING "${MIKV_GPU_TEXT}" 0 16 MIKV_GPU_TEXT)
