# Included right after project() in the wheel's build (pyproject.toml): OpenSSL and hiredis go into the wheel as static libraries, which Debian
# builds position independent, so that the wheel runs where they are not installed. Protobuf's archive is not, so python/CMakeLists.txt
# takes the shared library along instead. libstdc++ stays shared: it is part of every Debian and Ubuntu, Python's own extensions (numpy, torch)
# use it in the same process, and the protobuf library passes its std::string across.
set(OPENSSL_USE_STATIC_LIBS ON)
if(NOT DEFINED MOONPOOL_WITH_REDIS OR MOONPOOL_WITH_REDIS)
  find_library(MOONPOOL_HIREDIS_LIBRARY NAMES libhiredis.a REQUIRED)
endif()
