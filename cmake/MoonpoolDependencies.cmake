# What Debian 12 (and Ubuntu 24.04) ship. Header-only uses of Boost, spdlog, CLI11 and xxHash; Protobuf's lite runtime.
find_package(Threads REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(Protobuf REQUIRED)
find_path(MOONPOOL_BOOST_INCLUDE boost/json.hpp REQUIRED)
find_path(MOONPOOL_SPDLOG_INCLUDE spdlog/spdlog.h REQUIRED)
if(MOONPOOL_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()

add_library(moonpool_boost INTERFACE)
target_include_directories(moonpool_boost SYSTEM INTERFACE ${MOONPOOL_BOOST_INCLUDE})
# The bodies of Asio, Beast, JSON, spdlog and fmt are compiled once, in moonpool_base (Debian's archives are not position independent).
target_compile_definitions(moonpool_boost INTERFACE BOOST_ALL_NO_LIB BOOST_ERROR_CODE_HEADER_ONLY
                           BOOST_ASIO_NO_DEPRECATED BOOST_ASIO_SEPARATE_COMPILATION
                           BOOST_BEAST_SEPARATE_COMPILATION)
target_link_libraries(moonpool_boost INTERFACE Threads::Threads)

add_library(moonpool_spdlog INTERFACE)
target_compile_definitions(moonpool_spdlog INTERFACE SPDLOG_COMPILED_LIB SPDLOG_FMT_EXTERNAL)
