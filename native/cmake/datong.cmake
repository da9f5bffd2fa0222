# datong_kernel(<name> SOURCES a.cpp ... [AVX2 b.cpp ...] [AVX512 c.cpp ...] [AVX512VNNI ...] [AVX512BF16 ...]
#               [NEON ...] [NEON_DOTPROD ...] [TESTS x_test.cpp ...])
# Adds the files of one kernels/<op>/ folder to the library datong_native. The ISA lists are compiled with their flags,
# and only where the compiler targets their processor. Each test file becomes one ctest.
#
# An ISA file must not export anything but its entry points: the linker would be free to take its copy of a shared inline
# function for the whole program. So everything else in it is in an anonymous namespace, and it calls no inline function
# of the standard library. scripts/test-native checks this with nm.
set(DATONG_FLAGS_AVX2 -mavx2 -mfma -mf16c)
# GCC's own AVX-512 headers trip these two warnings (gcc.gnu.org/PR105593).
set(DATONG_FLAGS_AVX512 ${DATONG_FLAGS_AVX2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512
                        -Wno-uninitialized -Wno-maybe-uninitialized)
set(DATONG_FLAGS_AVX512VNNI ${DATONG_FLAGS_AVX512} -mavx512vnni)
set(DATONG_FLAGS_AVX512BF16 ${DATONG_FLAGS_AVX512} -mavx512bf16)
set(DATONG_FLAGS_NEON) # part of the base instruction set
set(DATONG_FLAGS_NEON_DOTPROD -march=armv8.2-a+dotprod)
set(DATONG_ISAS)
if(DATONG_X86)
  set(DATONG_ISAS AVX2 AVX512 AVX512VNNI AVX512BF16)
elseif(DATONG_ARM64)
  set(DATONG_ISAS NEON NEON_DOTPROD)
endif()

function(datong_kernel name)
  cmake_parse_arguments(PARSE_ARGV 1 K "" "" "SOURCES;AVX2;AVX512;AVX512VNNI;AVX512BF16;NEON;NEON_DOTPROD;TESTS")
  if(K_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "datong_kernel(${name}): unknown argument ${K_UNPARSED_ARGUMENTS}")
  endif()
  list(TRANSFORM K_SOURCES PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
  target_sources(datong_native PRIVATE ${K_SOURCES})
  foreach(isa ${DATONG_ISAS})
    if(K_${isa})
      list(TRANSFORM K_${isa} PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
      target_sources(datong_native PRIVATE ${K_${isa}})
      set_source_files_properties(${K_${isa}} TARGET_DIRECTORY datong_native
                                  PROPERTIES COMPILE_OPTIONS "${DATONG_FLAGS_${isa}}")
    endif()
  endforeach()
  foreach(test ${K_TESTS})
    datong_test(${CMAKE_CURRENT_SOURCE_DIR}/${test})
  endforeach()
endfunction()

# datong_test(<absolute path of x_test.cpp>): executable and ctest `x_test`.
function(datong_test file)
  if(NOT DATONG_BUILD_TESTS)
    return()
  endif()
  get_filename_component(name ${file} NAME_WE)
  add_executable(${name} ${file})
  target_link_libraries(${name} PRIVATE datong_native datong_options)
  add_test(NAME ${name} COMMAND ${name})
endfunction()
