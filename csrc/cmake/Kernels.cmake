# SPDX-License-Identifier: Apache-2.0
# The CUDA sources of the target `port`. A kernel is compiled for those architectures alone that can run it: what needs
# clusters from 9.0 on, bf16 from 8.0 on.
function(port_kernels name oldest)
  set(architectures)
  foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
    string(REGEX MATCH "^[0-9]+" number "${architecture}")
    if(architecture MATCHES "^(native|all|all-major)$" OR number GREATER_EQUAL oldest)
      list(APPEND architectures ${architecture})
    endif()
  endforeach()
  if(NOT architectures)  # the functions are still called for; nothing will launch what they name
    set(architectures "${CMAKE_CUDA_ARCHITECTURES}")
  endif()
  add_library(${name} OBJECT ${ARGN})
  set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES "${architectures}")
  target_compile_features(${name} PRIVATE cxx_std_17 cuda_std_17)
  target_include_directories(${name} PRIVATE include src cuda)
  set_target_properties(${name} PROPERTIES CUDA_COMPILER_LAUNCHER "${CMAKE_CURRENT_SOURCE_DIR}/cmake/keep_log.sh")
  # The wheel's size is mostly these: nvcc 12.8 and later pack them a quarter smaller.
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--compress-mode=size>)
  endif()
  # -v: ptxas says what a kernel takes; keep_log.sh keeps it for check_resources.py.
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-v -Xfatbin=-compress-all
                                         $<$<BOOL:${PORT_WERROR}>:-Werror=all-warnings>>)
  target_sources(port PRIVATE $<TARGET_OBJECTS:${name}>)
endfunction()

port_kernels(port_cuda_host 75 cuda/device_info.cu cuda/from_host.cu cuda/launch.cu cuda/refiner.cu)
port_kernels(port_decode 75 cuda/decode.cu)
port_kernels(port_lines_plain 75 cuda/lines_block_plain.cu)
port_kernels(port_lines_half 75 cuda/lines_block_half.cu)
port_kernels(port_lines_bfloat 80 cuda/lines_block_bfloat.cu)
port_kernels(port_lines_cluster 90 cuda/lines_cluster_half.cu cuda/lines_cluster_bfloat.cu)

# The line as a layer of somebody else's engine (include/port/engine_layer.hpp), as PTX: one file per precision, number of joints
# and oldest compute capability. They lie beside the Python module.
set(PORT_LAYERS_FOLDER "${CMAKE_CURRENT_BINARY_DIR}/layers" CACHE INTERNAL "port_line_*.ptx")
file(GLOB layer_headers CONFIGURE_DEPENDS cuda/*.h cuda/kernels/*.h cuda/device/*.h)
set(layers)
foreach(kind "fp32;port::kernels::Plain;75" "fp16;port::device::Half;75" "fp16;port::device::Half;80"
             "bf16;port::device::Bfloat;80")
  list(GET kind 0 precision)
  list(GET kind 1 format)
  list(GET kind 2 oldest)
  foreach(columns 2 3 4)
    set(layer "${PORT_LAYERS_FOLDER}/port_line_${precision}_${columns}_sm${oldest}.ptx")
    add_custom_command(
      OUTPUT "${layer}"
      COMMAND ${CMAKE_COMMAND} -E make_directory "${PORT_LAYERS_FOLDER}"
      COMMAND "${CMAKE_CUDA_COMPILER}" -ptx -arch=compute_${oldest} -std=c++17 -I "${CMAKE_CURRENT_SOURCE_DIR}/cuda"
              -DPORT_LAYER_FORMAT=${format} -DPORT_LAYER_COLUMNS=${columns} -o "${layer}"
              "${CMAKE_CURRENT_SOURCE_DIR}/cuda/engine_layer.cu"
      DEPENDS cuda/engine_layer.cu ${layer_headers}
      VERBATIM)
    list(APPEND layers "${layer}")
  endforeach()
endforeach()
add_custom_target(port_layers ALL DEPENDS ${layers})

# The static runtime: the library asks for no CUDA library and loads where there is no driver.
find_package(CUDAToolkit REQUIRED)
target_link_libraries(port PRIVATE CUDA::cudart_static)
