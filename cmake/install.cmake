# What `cmake --install` puts in place, by component: `development` (headers, static libraries, the
# CMake package and pkg-config's file; in the wheel too), `shared` and `python`, the operators.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/absgd")

# Static and shared form have a file each that exports them: absgdConfig.cmake includes what is there.
function(install_form target component export)
  install(TARGETS ${target} EXPORT ${export}
    ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT ${component}
    LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT ${component}
    INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(EXPORT ${export} NAMESPACE absgd:: DESTINATION "${package_dir}" COMPONENT ${component})
  string(REPLACE "-" "_" export_name ${export})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${export_name})
endfunction()

install_form(absgd_kernels development absgd-static)
install_form(absgd_kernels_shared shared absgd-shared)
if(TORCH_ABSGD_CUDA)
  install_form(absgd_cuda_kernels development cuda-static)
  install_form(absgd_cuda_kernels_shared shared cuda-shared)
  install(FILES cuda/absgd_cuda.h
    DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT development)
endif()
install(FILES csrc/absgd.h csrc/absgd_version.h csrc/absgd_libtorch.h csrc/absgd_libtorch_weigher.h
  csrc/absgd_libtorch_rule.h csrc/absgd_libtorch_batch.h
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT development)

configure_package_config_file(cmake/absgdConfig.cmake.in absgdConfig.cmake
  INSTALL_DESTINATION "${package_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(absgdConfigVersion.cmake COMPATIBILITY SameMinorVersion)
file(RELATIVE_PATH relative_prefix
  "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
configure_file(cmake/absgd.pc.in absgd.pc @ONLY)
install(FILES
  "${PROJECT_BINARY_DIR}/absgdConfig.cmake" "${PROJECT_BINARY_DIR}/absgdConfigVersion.cmake"
  DESTINATION "${package_dir}" COMPONENT development)
install(FILES "${PROJECT_BINARY_DIR}/absgd.pc"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" COMPONENT development)

if(TORCH_ABSGD_TORCH_DIR)
  configure_file(cmake/_version.py.in _version.py @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/_version.py" DESTINATION . COMPONENT python)
endif()
foreach(operators torch_absgd_cpu torch_absgd_cuda)
  if(TARGET ${operators})
    install(TARGETS ${operators} LIBRARY DESTINATION . COMPONENT python)
  endif()
endforeach()
